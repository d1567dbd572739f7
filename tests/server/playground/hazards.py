"""Requests that are hard to write down: everything that means something to a shell, a language or an eye."""

import base64
import json
import random
from typing import Any

TEXTS = (
    "",
    "Hello",
    'it\'s "quoted" and `ticked`',
    "back\\slash \\n \\' \\\" \\\\",
    "lines\nand\r\nreturns\rand\ttabs",
    "$HOME ${HOME} $(id) `id` !! !$ %s %(a)s {x} {{x}}",
    "JSON\nJSON",
    "'''\n\"\"\"\n'''",
    "\u2028\u2029\u0085\ufeff\u200b\u202e\u00a0\u00ad",
    "🌍 👩‍👩‍👧 é 日本語 \U0010ffff",
    "\x00\x01\x1b[31m\x7f",
    "</script><!-- <img src=x onerror=alert(1)> -->",
    "#{a} <%= b %> \\u0041 \\x41 \\N{BULLET} &amp;",
    "-d @/etc/passwd",
    "None True null true undefined NaN",
)
HALVES = ("\ud800", "a\udfffb", "\udc00\ud800")
NUMBERS = (0, -1, 1, 0.1, 1e-7, 1e21, -2.5, 2**53 - 1)
NAMES = ("a", "a b", "a'b", 'a"b', "a-b", "1a", "class", "__proto__", "constructor", "é", "", "$", "\u2028")

PROGRAMS = {"stream": True, "stream_options": {"include_usage": True}}
"""What a program sets that streams: without the counts in each event that the page asks for."""
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
PIXEL = "data:image/png;base64," + base64.b64encode(bytes(range(60))).decode()
PHOTO = "data:image/jpeg;base64," + base64.b64encode(bytes(range(256)) * 20).decode()
ODD: list[dict[str, Any]] = [
    {"messages": [{"role": "system", "content": "Be brief."}]},
    {"messages": [{"role": "user", "content": ""}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "n": 2},
    {"messages": [{"role": "assistant", "content": "Hello"}, {"role": "system", "content": ""}]},
    {
        "messages": [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "one, two"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    },
    {
        "messages": [
            {"role": "user", "content": "Call it."},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "name": "f", "content": ""},
            {"role": "assistant", "content": "So it is.", "reasoning": "Hm."},
            {"role": "user", "content": "Again."},
            {"role": "assistant", "content": "With words.", "tool_calls": [CALL | {"id": "c2"}]},
            {"role": "tool", "tool_call_id": "c2", "content": "2"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    },
    {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}} for url in (PIXEL, PHOTO)]}
        ]
    },
    {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": PHOTO}},
                    {"type": "image_url", "image_url": {"url": "http://192.0.2.1/a.png"}},
                    {"type": "text", "text": "look"},
                ],
            },
            {"role": "assistant", "content": "I see."},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PHOTO}}]},
        ]
    },
]
"""Conversations that begin, end or hold what few do."""


def requests(seed: int, count: int, *, halves: bool = True) -> list[dict[str, Any]]:
    """So many chat requests. `halves` may hold halves of characters, which most programs cannot send."""
    rng = random.Random(seed)
    texts = (*TEXTS, *HALVES) if halves else TEXTS
    # Two halves that meet are one character, which only JSON tells Python.
    return [json.loads(json.dumps(_request(rng, texts))) for _ in range(count)]


def _request(rng: random.Random, texts: tuple[str, ...]) -> dict[str, Any]:
    def text() -> str:
        return "".join(rng.choice(texts) for _ in range(rng.randint(1, 3)))

    def value(depth: int) -> Any:
        """Without null, which one of the libraries leaves out."""
        kind = rng.randint(0, 5 if depth else 3)
        if kind == 4:
            return [value(depth - 1) for _ in range(rng.randint(0, 3))]
        if kind == 5:
            return {rng.choice(NAMES): value(depth - 1) for _ in range(rng.randint(0, 3))}
        return rng.choice([text(), rng.choice(NUMBERS), rng.random() < 0.5, text()])

    request: dict[str, Any] = {"messages": [_message(rng, text) for _ in range(rng.randint(1, 4))]}
    optional: dict[str, Any] = {
        "model": f"m-{text()}",
        "temperature": rng.choice([0, 0.7, 2]),
        "max_tokens": 20,
        "stop": [text() or "x"],
        "seed": 2**53 - 1,
        "top_k": 5,
        "min_p": 0.1,
        "logit_bias": {"5": -100},
        "chat_template_kwargs": {"a b": value(2), "thinking": False},
        "tools": [{"type": "function", "function": {"name": "f", "description": text(), "parameters": value(3)}}],
        "tool_choice": "auto",
        "response_format": {"type": "json", "value": {"title": text(), "properties": {n: {} for n in NAMES[:9]}}},
        "choice": ["a", text()],
        "n": rng.choice([1, 2]),
        "reasoning_effort": "low",
        "logprobs": True,
        "metadata": {"a": text()},
    }
    for name in rng.sample(sorted(optional), rng.randint(0, 6)):
        request[name] = optional[name]
    return request


def _message(rng: random.Random, text: Any) -> dict[str, Any]:
    role = rng.choice(["system", "user", "assistant", "tool"])
    if role == "tool":
        return {"role": role, "tool_call_id": text(), "content": text()}
    if role == "assistant" and rng.random() < 0.5:
        call = {"id": text(), "type": "function", "function": {"name": "f", "arguments": text()}}
        return {"role": role, "content": None, "tool_calls": [call]}
    if role == "user" and rng.random() < 0.4:
        image = base64.b64encode(rng.randbytes(rng.choice([30, 3000]))).decode()
        url = f"data:image/{rng.choice(['png', 'jpeg', 'webp'])};base64,{image}"
        return {
            "role": role,
            "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text()}],
        }
    return {"role": role, "content": text()}
