"""Checks of conversations, tools and constraints."""

import base64
import json
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

from server.benchmarks.exchange import Answer, Asker
from server.benchmarks.verdicts import Check, Finding, honoured, ignored, wrong

CITY = "Name a city, as JSON."
BERN = 'Answer with {"city": "Bern"}'
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "size": {"enum": ["small", "large"]}},
    "required": ["city", "size"],
    "additionalProperties": False,
}
PATTERN = "[0-9]{3}-[a-f]{4}"
CLOCK = {
    "type": "object",
    "properties": {"zone": {"type": "string", "enum": ["UTC", "CET"]}},
    "required": ["zone"],
    "additionalProperties": False,
}
FORMAT_TOKENS = 80


def _tool(name: str) -> dict[str, Any]:
    function = {"name": name, "description": f"Calls {name}.", "parameters": CLOCK, "strict": True}
    return {"type": "function", "function": function}


TOOLS = [_tool("tell_time"), _tool("set_alarm")]
WHAT_TIME = "What time is it in UTC?"


def _grows(messages: list[dict[str, Any]], than: list[dict[str, Any]], least: int = 1) -> Callable[[Asker], Finding]:
    """The prompt has at least so many tokens more than that of another conversation."""

    def judge(asker: Asker) -> Finding:
        more, before = (asker.ask(messages=one, max_tokens=2).count("prompt_tokens") for one in (messages, than))
        return honoured() if more - before >= least else ignored(f"{more} prompt tokens, {before} without")

    return judge


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


HELLO = [_user("Hello there, old river.")]
SHORT_SYSTEM = {"role": "system", "content": "Be brief."}
"""Some templates have a system turn of their own where there is none."""
SYSTEM = {"role": "system", "content": "You are a miller. Speak of nothing but water, wheels, flour and the weather."}
PARTS = [_user([{"type": "text", "text": "Hello there, old river."}, {"type": "text", "text": "How are you today?"}])]
HISTORY = [*HELLO, {"role": "assistant", "content": "Good morning to you, stranger at the bank."}, _user("And now?")]
CALL = {"id": "call_1", "type": "function", "function": {"name": "tell_time", "arguments": '{"zone": "UTC"}'}}
CALLED = [
    _user(WHAT_TIME),
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "It is twenty past nine in the evening."},
]


def _image() -> str:
    """A PNG of 32 by 32 red points, as a data URL."""
    side = 32

    def block(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress((b"\0" + b"\xff\0\0" * side) * side)
    head = block(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + head + block(b"IDAT", rows) + block(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode()


SEEN = [_user([{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": _image()}}])]


def _format(given: dict[str, Any], is_held: Callable[[str], bool], prompt: str = CITY) -> Callable[[Asker], Finding]:
    def judge(asker: Asker) -> Finding:
        answer = asker.ask(prompt, max_tokens=FORMAT_TOKENS, response_format=given)
        if is_held(answer.text):
            return honoured()
        plain = asker.ask(prompt, max_tokens=FORMAT_TOKENS).text
        return ignored("the same text without it") if plain == answer.text else wrong(f"{answer.text[:80]!r}")

    return judge


def _is_city(text: str) -> bool:
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return (
        isinstance(found, dict) and set(found) == {"city", "size"} and isinstance(found["city"], str)
        and len(found["city"]) <= 12 and found["size"] in ("small", "large")
    )  # fmt: skip


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _calls(answer: Answer) -> list[dict[str, Any]]:
    return list(answer.message.get("tool_calls") or ())


def _told(asker: Asker) -> Finding:
    with_tools = asker.ask(WHAT_TIME, tools=TOOLS, max_tokens=64).count("prompt_tokens")
    without = asker.ask(WHAT_TIME, max_tokens=2).count("prompt_tokens")
    return honoured() if with_tools > without + 20 else ignored(f"{with_tools} prompt tokens, {without} without")


def _called(choice: Any, name: str) -> Callable[[Asker], Finding]:
    def judge(asker: Asker) -> Finding:
        answer = asker.ask(WHAT_TIME, tools=TOOLS, tool_choice=choice, max_tokens=FORMAT_TOKENS)
        calls = _calls(answer)
        if not calls:
            plain = asker.ask(WHAT_TIME, max_tokens=FORMAT_TOKENS).text
            return ignored("no call") if answer.text == plain else wrong(f"no call, but {answer.text[:80]!r}")
        function = calls[0]["function"]
        if function["name"] not in ([name] if name else ["tell_time", "set_alarm"]):
            return wrong(f"calls {function['name']}")
        given = function["arguments"]
        arguments = json.loads(given) if isinstance(given, str) else None
        if not isinstance(arguments, dict) or arguments.get("zone") not in ("UTC", "CET"):
            return wrong(f"arguments {given!r}")
        return honoured() if answer.end in ("tool_calls", "stop") else wrong(f"finish_reason {answer.end}")

    return judge


def _not_called(asker: Asker) -> Finding:
    told = _told(asker)
    answer = asker.ask(WHAT_TIME, tools=TOOLS, tool_choice="none", max_tokens=64)
    if told.verdict != "honoured":
        return ignored("as tools are, whatever it says")
    return wrong("a call") if _calls(answer) else honoured()


def _tool_prompt(asker: Asker) -> Finding:
    words = "Choose with care among the functions that follow, and prefer those that tell the time of day."
    plain, prompted = (asker.ask(WHAT_TIME, tools=TOOLS, tool_prompt=said, max_tokens=64).count("prompt_tokens")
                       for said in (None, words))  # fmt: skip
    return honoured() if prompted > plain else ignored(f"{prompted} prompt tokens, {plain} without")


CONVERSATIONS = (
    Check(
        "messages",
        "a system turn",
        "a long one makes the prompt at least ten tokens longer than a short one",
        _grows([SYSTEM, *HELLO], [SHORT_SYSTEM, *HELLO], 10),
    ),
    Check("messages", "an assistant's turn", "the prompt has at least ten tokens more", _grows(HISTORY, HELLO, 10)),
    Check("messages", "two parts of text", "the prompt has the tokens of both", _grows(PARTS, HELLO, 3)),
    Check(
        "messages", "a call and its result", "the prompt has at least ten tokens more", _grows(CALLED, CALLED[:1], 10)
    ),
    Check("messages.image_url", "an image", "the prompt has tokens for it", _grows(SEEN, [_user("What is this?")], 8)),
)
CONSTRAINTS = (
    Check(
        "response_format", "`json` with `value`", "the text is JSON that follows the schema",
        _format({"type": "json", "value": SCHEMA}, _is_city),
    ),
    Check(
        "response_format", "`json_schema`", "the text is JSON that follows the schema",
        _format({"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}, _is_city),
    ),
    Check(
        "response_format", "`json_object`", "the text is a JSON object",
        _format({"type": "json_object"}, _is_object, BERN),
    ),
    Check(
        "response_format", "`regex`", "the text matches as a whole",
        _format({"type": "regex", "value": PATTERN}, lambda text: re.fullmatch(PATTERN, text) is not None),
    ),
)  # fmt: skip
CALLS = (
    Check("tools", "two", "the prompt has more tokens by what describes them", _told),
    Check(
        "tool_choice", "required", "a call of one of them, with arguments that follow its schema",
        _called("required", ""),
    ),
    Check(
        "tool_choice", "a function", "a call of that one, with arguments that follow its schema",
        _called({"type": "function", "function": {"name": "set_alarm"}}, "set_alarm"),
    ),
    Check("tool_choice", "none", "no call, of a server that makes something of tools", _not_called),
    Check("tool_prompt", "a sentence", "the prompt has more tokens", _tool_prompt),
)  # fmt: skip
