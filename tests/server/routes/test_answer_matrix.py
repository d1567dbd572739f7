"""Tools, constraints, reasoning, stop strings, several choices, streamed or not: every combination, over HTTP.

The engine is scripted, so what each answer must be is known: the definition is `expected`, written without the server.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from huggingface_hub import InferenceClient
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from server.markup.events import CallArguments, CallOpened
from server.prompt.tokenizer import ChatTokenizer
from server.protocol.response import call_pieces
from server.protocol.shapes import ChatCompletionChunkShape, ChatCompletionShape
from tests.server import patient
from tests.server.fakes import RunningServer, Script, running_server
from tests.server.routes.test_clients import hugging_face_schema
from tests.server.texts import needs_spec

MESSAGES: list[Any] = [{"role": "user", "content": "Weather?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now"}},
]
REASONING = "Let me see. STOP\n\nIs it <tool_call>?"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


@dataclass(frozen=True)
class Text:
    """One answer: content before the calls, the calls, content behind them."""

    content: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    behind: str = ""

    def written(self) -> str:
        calls = [
            f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
            for name, arguments in self.calls
        ]
        return "\n".join(filter(None, [self.content, *calls, self.behind]))


@dataclass(frozen=True)
class Kind:
    """One kind of request, and the answer of each choice."""

    fields: dict[str, Any]
    answers: tuple[Text, Text]
    constraint: str | None
    called: str = "tool_calls"
    exact: bool = False
    schemas: list[str] = field(default_factory=list)


WEATHER = ("get_weather", '{"city": "STOP <b> \\"}\\" é"}')
KINDS = {
    "plain": Kind({}, (Text("It is warm. STOP It is."), Text("Who knows?\n")), None),
    "schema": Kind(
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
        (Text(' {"city": "Paris STOP"}'), Text('{"city": "<think>x</think>"}')),
        "json_schema",
        exact=True,
    ),
    "regex": Kind(
        {"response_format": {"type": "regex", "value": "[a-zA-Z \n]+"}},
        (Text("yes STOP yes"), Text("\n no")),
        "regex",
        exact=True,
    ),
    "auto": Kind(
        {"tools": TOOLS},
        (Text("Let me look.", (WEATHER, ("now", "{}")), "That STOP was it."), Text("No need. ")),
        "lark",
        schemas=["tools[0].function.parameters", "tools[1].function.parameters"],
    ),
    "auto or schema": Kind(
        {"tools": TOOLS, "tool_choice": "auto", "response_format": {"type": "json", "value": SCHEMA}},
        (Text(calls=(WEATHER,)), Text('{"city": "STOP"}')),
        "lark",
        exact=True,
        schemas=["tools[0].function.parameters", "tools[1].function.parameters", "response_format.value"],
    ),
    "required": Kind(
        {"tools": TOOLS, "tool_choice": "required"},
        (Text(calls=(WEATHER, ("now", '{ "a" : [1] }'))), Text(calls=(("now", "{}"),))),
        "lark",
        schemas=["tools[0].function.parameters", "tools[1].function.parameters"],
    ),
    "named": Kind(
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        (Text(calls=(WEATHER,)), Text(calls=(("get_weather", '{"city": "Rome"}'),))),
        "lark",
        called="stop",
        schemas=["tools[0].function.parameters"],
    ),
}
SEEDS = {name: seed for seed, name in enumerate(KINDS)}


def raw(text: Text, reasons: bool, exact: bool) -> str:
    """What the model writes."""
    gap = "" if exact else "\n\n"
    return (f"{REASONING}\n</think>{gap}" if reasons else "") + text.written()


def expected(kind: Kind, text: Text, *, reasons: bool, stops: bool) -> dict[str, Any]:
    """The message that a choice must be, and its finish reason."""
    parts = [part for part in (text.content, text.behind) if part]
    content = ("\n" * (len(text.calls) + 1)).join(parts)
    content = content.strip() if text.calls else content
    stopped = stops and "STOP" in content
    if stopped:
        content = content[: content.index("STOP")]
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if not content and text.calls:
        message["content"] = None
    if reasons:
        message |= {"reasoning": REASONING, "reasoning_content": REASONING}
    if text.calls:
        functions = [{"name": name, "arguments": arguments} for name, arguments in text.calls]
        message["tool_calls"] = [{"type": "function", "function": function} for function in functions]
    return {"message": message, "finish_reason": kind.called if text.calls else "stop"}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, smollm2_dir: Path) -> Iterator[dict[bool, RunningServer]]:
    """Without and with a template that opens reasoning."""
    reasoner = tmp_path_factory.mktemp("reasoner")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2_dir / name, reasoner)
    (reasoner / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = ChatTokenizer.load(smollm2_dir)

    def script(reasons: bool) -> Script:
        answers = {
            SEEDS[name]: [
                tokenizer.encode(raw(text, reasons, kind.exact), allow_special=False) for text in kind.answers
            ]
            for name, kind in KINDS.items()
        }
        return Script(model_dir=str(reasoner if reasons else smollm2_dir), token_ids=[1], answers=answers)

    with (
        pytest.MonkeyPatch.context() as patch,
        running_server(patch, tmp_path_factory.mktemp("plain"), script(False)) as plain,
        running_server(patch, tmp_path_factory.mktemp("reasoning"), script(True)) as reasoning,
    ):
        yield {False: plain, True: reasoning}


def post(server: RunningServer, **fields: Any) -> httpx.Response:
    answer = patient.post(f"{server.url}/v1/chat/completions", json={"messages": MESSAGES, **fields})
    assert answer.status_code == 200, answer.text
    return answer


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    blocks = [block for block in answer.text.split("\n\n") if not block.startswith(":")]
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    """The message without the ids of its calls, which differ each time."""
    ids = [call.pop("id") for call in message.get("tool_calls", ())]
    assert len(set(ids)) == len(ids) and all(one.startswith("call_") and len(one) == 29 for one in ids)
    return message


def put_together(events: list[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """The choices that a stream adds up to, by OpenAI's rule: texts are laid end to end, calls go by their index."""
    choices: list[dict[str, Any]] = [
        {"index": index, "message": {"role": "assistant", "refusal": None}, "finish_reason": None, "begun": False}
        for index in range(n)
    ]
    for event in events:
        for piece in event["choices"]:
            choice, delta = choices[piece["index"]], piece["delta"]
            message = choice["message"]
            assert choice["finish_reason"] is None
            assert delta.pop("role", None) == (None if choice["begun"] else "assistant")
            choice["begun"] = True
            choice["finish_reason"] = piece["finish_reason"]
            if piece["logprobs"] is not None:
                choice.setdefault("logprobs", []).extend(piece["logprobs"]["content"])
            assert len({call["index"] for call in delta.get("tool_calls", ())}) == len(delta.get("tool_calls", ()))
            for call in delta.pop("tool_calls", ()):
                calls = message.setdefault("tool_calls", [])
                if call.pop("index") == len(calls):
                    calls.append(call)
                else:
                    assert list(call) == ["function"] and list(call["function"]) == ["arguments"]
                    calls[-1]["function"]["arguments"] += call["function"]["arguments"]
            for name, text in delta.items():
                message[name] = message.get(name, "") + text
    for choice in choices:
        choice["message"].setdefault("content", None)
    return choices


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("reasons", [False, True])
def test_every_combination(name: str, reasons: bool, servers: dict[bool, RunningServer]) -> None:
    kind, server = KINDS[name], servers[reasons]
    for n, stops, heat in product((1, 2), (False, True), (0.0, 1.5)):
        fields = {**kind.fields, "n": n, "seed": SEEDS[name], "logprobs": True, "temperature": heat}
        fields |= {"stop": "STOP"} if stops else {}
        wanted = [expected(kind, text, reasons=reasons, stops=stops) for text in kind.answers[:n]]
        whole = post(server, **fields).json()
        ChatCompletionShape.model_validate(whole)
        ChatCompletion.model_validate(whole)
        streamed = events_of(post(server, **fields, stream=True, stream_options={"include_usage": True}))
        for event in streamed:
            ChatCompletionChunkShape.model_validate(event)
            ChatCompletionChunk.model_validate(event)
        check_usage(whole, n, reasons)
        assert streamed[-1]["usage"] == whole["usage"] and streamed[-1]["choices"] == []
        for index, choice in enumerate(put_together(streamed, n)):
            given = whole["choices"][index]
            spelt = given.pop("logprobs")["content"]
            assert choice.pop("logprobs", []) == spelt
            shown = wanted[index]["message"]["content"] or ""
            assert b"".join(bytes(entry["bytes"]) for entry in spelt).decode() == shown
            for answer in (given, choice):
                assert answer["index"] == index
                answer["message"] = without_ids(answer["message"])
                assert {key: answer[key] for key in ("message", "finish_reason")} == wanted[index], (n, stops)


def check_usage(whole: dict[str, Any], n: int, reasons: bool) -> None:
    """Every token is counted, whatever it was part of."""
    usage = whole["usage"]
    details = usage["completion_tokens_details"]
    tokens = sum(len(choice["logprobs"]["content"]) for choice in whole["choices"])
    assert tokens + details["reasoning_tokens"] <= usage["completion_tokens"]
    assert (details["reasoning_tokens"] > 0) == reasons and details["reasoning_tokens"] < usage["completion_tokens"]
    assert not reasons or details["reasoning_tokens"] % n == 0


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("reasons", [False, True])
def test_what_the_engine_is_told(name: str, reasons: bool, servers: dict[bool, RunningServer]) -> None:
    kind, server = KINDS[name], servers[reasons]
    post(server, **kind.fields, seed=SEEDS[name])
    constraint = server.events("add")[-1]["constraint"]
    assert (constraint and constraint["kind"]) == kind.constraint
    if constraint is not None:
        assert constraint["after"] == ("</think>" if reasons else "")
        assert [entry["param"] for entry in constraint["schemas"]] == kind.schemas


@pytest.mark.parametrize("reasons", [False, True])
@pytest.mark.parametrize("name", ["required", "auto"])
def test_an_answer_cut_anywhere_shows_no_half_of_a_mark(
    name: str, reasons: bool, servers: dict[bool, RunningServer]
) -> None:
    """What is cut off within a call's head, or within a mark, is nothing; a call with arguments stays."""
    kind, server = KINDS[name], servers[reasons]
    whole = expected(kind, kind.answers[0], reasons=reasons, stops=False)["message"]
    length = len(raw(kind.answers[0], reasons, kind.exact).encode())
    for max_tokens in range(1, length):
        fields = {**kind.fields, "seed": SEEDS[name], "max_tokens": max_tokens, "logprobs": True}
        choice = post(server, **fields).json()["choices"][0]
        message = choice["message"]
        assert (whole["content"] or "").startswith((message["content"] or "").rstrip())
        assert REASONING.startswith(message.get("reasoning", ""))
        for cut, call in zip(message.get("tool_calls", ()), whole["tool_calls"], strict=False):
            assert cut["function"]["arguments"] and call["function"]["name"] == cut["function"]["name"]
            assert call["function"]["arguments"].startswith(cut["function"]["arguments"])
        spelt = b"".join(bytes(entry["bytes"]) for entry in choice["logprobs"]["content"])
        assert spelt.decode() == (message["content"] or "")
        [streamed] = put_together(events_of(post(server, **fields, stream=True)), 1)
        assert without_ids(streamed["message"]) == without_ids(message)
        assert streamed["finish_reason"] == choice["finish_reason"]
        if choice["finish_reason"] != "length":
            break
    else:
        pytest.fail("the answer was never whole")


def test_an_answer_cut_short_says_length(servers: dict[bool, RunningServer]) -> None:
    choice = post(servers[True], seed=SEEDS["plain"], max_tokens=5).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] == "" and REASONING.startswith(choice["message"]["reasoning"])
    fields = {**KINDS["required"].fields, "seed": SEEDS["required"]}
    choice = post(servers[False], **fields, max_tokens=24).json()["choices"][0]
    assert choice["finish_reason"] == "length" and choice["message"]["content"] is None
    [call] = choice["message"]["tool_calls"]
    assert WEATHER[1].startswith(call["function"]["arguments"]) and call["function"]["arguments"]


@needs_spec
@pytest.mark.parametrize("name", ["plain", "schema", "required", "named"])
def test_shapes_are_those_of_hugging_face(name: str, servers: dict[bool, RunningServer]) -> None:
    """Its schema has no message with content and calls at once, and none with neither."""
    schemas = {kind: hugging_face_schema(kind) for kind in ("output", "stream_output")}
    for reasons, server in servers.items():
        fields = {**KINDS[name].fields, "seed": SEEDS[name]}
        schemas["output"].validate(post(server, **fields).json())
        schemas["output"].validate(post(server, **fields, max_tokens=3).json())
        for event in events_of(post(server, **fields, stream=True)):
            # It knows no reasoning, and wants content in each delta that has no calls.
            delta = event["choices"][0]["delta"]
            if "tool_calls" not in delta:
                delta.setdefault("content", "")
            schemas["stream_output"].validate(event)
        client = InferenceClient(base_url=f"{server.url}/v1")
        options: dict[str, Any] = {"messages": MESSAGES, "seed": SEEDS[name], **KINDS[name].fields}
        message = client.chat.completions.create(**options).choices[0].message
        assert message.reasoning == (REASONING if reasons else None)
        wanted = KINDS[name].answers[0]
        assert [(call.function.name, call.function.arguments) for call in message.tool_calls or ()] == [*wanted.calls]
        pieces = [chunk.choices[0].delta for chunk in client.chat.completions.create(**options, stream=True)]
        arguments = [call.function.arguments for delta in pieces for call in delta.tool_calls or () if not call.index]
        assert "".join(arguments) == (wanted.calls[0][1] if wanted.calls else "")


def test_what_came_together_is_one_piece_of_each_call() -> None:
    events: list[CallOpened | CallArguments] = [
        CallArguments(0, "1"),
        CallArguments(0, "}"),
        CallOpened(1, "id", "f"),
        CallArguments(1, "{"),
        CallArguments(1, "}"),
    ]
    assert call_pieces(events) == [
        {"index": 0, "function": {"arguments": "1}"}},
        {"index": 1, "id": "id", "type": "function", "function": {"name": "f", "arguments": "{}"}},
    ]


@pytest.mark.parametrize("reasons", [False, True])
def test_openais_stream_helper_puts_calls_together(reasons: bool, servers: dict[bool, RunningServer]) -> None:
    client = openai.OpenAI(base_url=f"{servers[reasons].url}/v1", api_key="none", max_retries=0)
    with client.chat.completions.stream(
        model="fake", messages=MESSAGES, tools=TOOLS, tool_choice="required", seed=SEEDS["required"]
    ) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    calls = KINDS["required"].answers[0].calls
    assert [(call.function.name, call.function.arguments) for call in message.tool_calls or ()] == [*calls]
    ids = [call.id for call in message.tool_calls or ()]
    assert all(len(one) == 29 for one in ids) and len(set(ids)) == len(ids)


def test_a_conversation_with_calls_goes_on(servers: dict[bool, RunningServer]) -> None:
    """The answer is taken back as it came, with the results of its calls."""
    for server in servers.values():
        fields = {**KINDS["auto"].fields, "seed": SEEDS["auto"]}
        message = post(server, **fields).json()["choices"][0]["message"]
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": f"result {number}"}
            for number, call in enumerate(message["tool_calls"])
        ]
        post(server, **fields | {"messages": [*MESSAGES, message, *results]})
    cut = post(servers[True], seed=SEEDS["plain"], max_tokens=3).json()["choices"][0]["message"]
    assert cut["reasoning"] and not cut["content"]
    post(servers[True], messages=[*MESSAGES, cut, *MESSAGES])
