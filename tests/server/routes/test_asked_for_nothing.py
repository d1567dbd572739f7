"""Over HTTP: values that ask for nothing, hints, other spellings, older names, and what the headers say of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import completion_create_params as openai_texts
from openai.types.chat import completion_create_params as openai_chats

from server.prompt.tokenizer import ChatTokenizer
from server.protocol.messages import ChatMessage
from server.protocol.shapes import ChatCompletionChunkShape, ChatCompletionShape
from tests.server import patient
from tests.server.fakes import RunningServer, Script, engine_config, running_server

MESSAGES: list[Any] = [{"role": "user", "content": "Weather?"}]
CALL_SEED = 7
ARGUMENTS = '{"city": "Oslo"}'
NAMES = ("get_weather", "a.b", "mcp/files:read")
FUNCTIONS = [{"name": name, "parameters": {"type": "object"}} for name in NAMES]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]
UNUSED = "x-headrace-unused"


@pytest.fixture(scope="module")
def script(smollm2_dir: Path, smollm2_tokenizer: ChatTokenizer) -> Script:
    def ids(text: str) -> list[int]:
        return smollm2_tokenizer.encode(text, allow_special=False)

    answers = {
        CALL_SEED + number: [ids(f'<tool_call>\n{{"name": "{name}", "arguments": {ARGUMENTS}}}\n</tool_call>')] * 2
        for number, name in enumerate(NAMES)
    }
    return Script(model_dir=str(smollm2_dir), token_ids=ids("Rain."), eos_after=len(ids("Rain.")), answers=answers)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, script: Script) -> Iterator[RunningServer]:
    with (
        pytest.MonkeyPatch.context() as patch,
        running_server(patch, tmp_path_factory.mktemp("nothing"), script) as running,
    ):
        yield running


def post(server: RunningServer, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
    prompt = {"messages": MESSAGES} if "chat" in path else {"prompt": "x"}
    return patient.post(server.url + path, json=prompt | fields)


def answered(server: RunningServer, **fields: Any) -> httpx.Response:
    answer = post(server, **fields)
    assert answer.status_code == 200, answer.text
    return answer


NOTHING: list[dict[str, Any]] = [
    {"parallel_tool_calls": True},
    {"parallel_tool_calls": False, "tools": []},
    {"top_logprobs": 0},
    {"top_logprobs": 0, "logprobs": False},
    {"stream_options": {"include_usage": True}},
    {"stream_options": {"include_usage": True}, "stream": False},
    {"stream_options": {"include_obfuscation": False}},
    {"best_of": 1},
    {"best_of": 2, "n": 2},
    {"top_k": -1},
    {"stop": ""},
    {"stop": []},
    {"stop": [""]},
    {"stop": ["", "zz"]},
    {"model": ""},
    {"metadata": {"a": 1, "b": {"c": None}}},
    {"reasoning_effort": "auto"},
    {"reasoning_effort": "default"},
    {"n": 1},
    {"top_p": 0},
    {"modalities": ["text"]},
    {"modalities": []},
    {"functions": []},
    {"functions": [], "function_call": "auto"},
    {"tools": [], "tool_choice": "auto"},
    {"tools": [], "tool_choice": "none"},
    {"tool_prompt": ""},
    {"logit_bias": {}},
    {"metadata": {}},
    {"stop_token_ids": []},
    {"chat_template_kwargs": {}},
    {"response_format": {"type": "text", "json_schema": None, "schema": None}},
    {"verbosity": "medium"},
    {"store": False},
    {"service_tier": "default"},
    {"prompt_cache_key": "k", "prompt_cache_retention": "24h", "safety_identifier": "s", "user": "u"},
    {"prediction": {"type": "content", "content": "Rain."}},
    {"cache_control": {"type": "ephemeral"}},
]


@pytest.mark.parametrize("fields", NOTHING, ids=json.dumps)
def test_what_asks_for_nothing_is_taken(fields: dict[str, Any], server: RunningServer) -> None:
    answer = answered(server, **fields)
    assert {choice["message"]["content"] for choice in answer.json()["choices"]} == {"Rain."}
    assert UNUSED not in answer.headers


def test_every_field_of_openai_s_api_may_be_null(server: RunningServer) -> None:
    for params, path in ((openai_chats, "/v1/chat/completions"), (openai_texts, "/v1/completions")):
        names = set(params.CompletionCreateParamsBase.__annotations__) - {"messages", "prompt"}
        assert {"temperature", "stop", "user", "seed"} <= names
        for name in sorted(names):
            assert post(server, path, **{name: None}).status_code == 200, name
        assert post(server, path, **dict.fromkeys(names)).status_code == 200


@pytest.mark.parametrize("fields", [{"stream_options": {}}, {"stop": ""}, {"stop": []}, {"top_k": -1}, {"top_p": 0}])
def test_raw_completions_take_what_asks_for_nothing_too(fields: dict[str, Any], server: RunningServer) -> None:
    assert post(server, "/v1/completions", **fields).json()["choices"][0]["text"] == "Rain."


def test_a_cache_key_is_part_of_the_salt(server: RunningServer) -> None:
    def salt(**fields: Any) -> str:
        answered(server, **fields)
        return str(server.events("add")[-1]["salt"])

    assert salt(prompt_cache_key="a") == salt(prompt_cache_key="a") != salt(prompt_cache_key="b")
    assert salt() == salt(prompt_cache_key="") not in (salt(prompt_cache_key="a"), salt(prompt_cache_key="b"))


HISTORY: list[dict[str, Any]] = [
    {
        "role": "assistant",
        "content": "x",
        "images": [],
        "citations": [],
        "reasoning_text": "y",
        "reasoning_opaque": "z",
    },
    {"role": "assistant", "content": "x", "finish_reason": "stop", "timestamp": 1.5},
    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "provider_specific_fields": {"a": 1}}}]},
    {"role": "assistant", "tool_calls": [{"id": "", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "c", "content": "x", "is_error": False},
    {"role": "user", "content": "x", "name": "", "timestamp": "2026-01-01"},
    {"role": "assistant", "content": None},
    {"role": "assistant", "content": []},
    {"role": "assistant", "content": "", "refusal": "No."},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    {"role": "assistant", "content": "x", "id": "msg_1", "audio": None, "annotations": [{"type": "url_citation"}]},
    {"role": "assistant", "content": "x", "reasoning": "y", "reasoning_content": "y", "reasoning_details": [{"a": 1}]},
    {"role": "assistant", "content": "x", "reasoning": "", "reasoning_content": "y", "tool_calls": []},
    {"role": "assistant", "content": "x", "parsed": None, "function_call": None, "provider_specific_fields": {}},
    {
        "role": "assistant",
        "tool_calls": [
            {
                "id": "c",
                "type": None,
                "index": 0,
                "function": {"name": "f", "arguments": '{"a": ', "parsed_arguments": {}},
            }
        ],
    },
    {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
    {"role": "tool", "tool_call_id": "c", "content": None},
    {"role": "tool", "tool_call_id": "c", "content": []},
    {"role": "function", "name": "f", "content": "x"},
    {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
    {"role": "system", "content": "x", "cache_control": {"type": "ephemeral"}},
    {"role": "system", "content": None},
    {"role": "system", "content": []},
    {"role": "developer"},
    {"role": "tool", "tool_call_id": "", "content": "x"},
    {"role": "user", "content": [{"type": "input_text", "text": "x", "index": 0, "id": "a"}]},
    {"role": "assistant", "content": [{"type": "output_text", "text": "x", "annotations": []}], "id": "msg_1"},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "y", "signature": "s"},
            {"type": "text", "text": "x", "index": 1},
        ],
    },
    {"role": "assistant", "content": [{"type": "thinking", "thinking": [{"type": "text", "text": "y"}]}]},
    {"role": "assistant", "content": [{"type": "reasoning", "text": "y"}, {"type": "text", "text": "x"}]},
    {"role": "assistant", "content": [{"type": "reasoning", "reasoning": "y", "index": "lc_0"}]},
    {
        "role": "assistant",
        "content": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "y"}], "id": "rs_1"}],
    },
]

NOT_PARTS: list[tuple[str, Any]] = [
    ("user", [{"type": "thinking", "thinking": "y"}]),
    ("system", [{"type": "reasoning", "text": "y"}]),
    ("assistant", [{"type": "thinking", "text": "y"}]),
    ("assistant", [{"type": "text", "text": "x", "thinking": "y"}]),
    ("assistant", [{"type": "output_text"}]),
    ("user", None),
    ("user", []),
]


@pytest.mark.parametrize(("role", "content"), NOT_PARTS, ids=json.dumps)
def test_parts_that_do_not_fit_are_refused_by_name(role: str, content: Any, server: RunningServer) -> None:
    refused = post(server, messages=[*MESSAGES, {"role": role, "content": content}])
    assert refused.status_code == 400
    assert refused.json()["error"]["param"].startswith("messages[1]"), refused.text


def test_thoughts_in_parts_reach_the_template_as_reasoning() -> None:
    parts = [
        {"type": "thinking", "thinking": "One."},
        {"type": "reasoning", "summary": [{"text": "Two."}]},
        {"type": "redacted_thinking", "data": "gone"},
        {"type": "output_text", "text": "Said."},
    ]
    turn = ChatMessage.model_validate({"role": "assistant", "content": parts})
    plain = turn.plain()
    assert plain["content"] == [{"type": "text", "text": "Said."}] and turn.text == "Said."
    assert plain["reasoning"] == plain["reasoning_content"] == "One.\nTwo."
    own = ChatMessage.model_validate({"role": "assistant", "content": parts, "reasoning_content": "Own."})
    assert own.plain()["reasoning_content"] == "Own." and "reasoning" not in own.plain()


def test_thoughts_that_cannot_be_read_are_named(server: RunningServer) -> None:
    turn = {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "y"}]}
    assert answered(server, messages=[*MESSAGES, turn, *MESSAGES]).headers[UNUSED] == "/messages/1/content/0"


@pytest.mark.parametrize("turn", HISTORY, ids=json.dumps)
def test_turns_that_clients_send_back_are_taken(turn: dict[str, Any], server: RunningServer) -> None:
    first = [turn] if turn["role"] == "system" else [*MESSAGES, turn]
    assert UNUSED not in answered(server, messages=[*first, *MESSAGES]).headers


def test_names_and_efforts_that_the_model_does_not_use_are_named(server: RunningServer) -> None:
    asked = {"messages": [{**MESSAGES[0], "name": "Ann"}], "reasoning_effort": "high"}
    for stream in (False, True):
        assert answered(server, **asked, stream=stream).headers[UNUSED] == "/messages/0/name, /reasoning_effort"
    switch = answered(server, chat_template_kwargs={"enable_thinking": False}, reasoning_effort="none")
    assert switch.headers[UNUSED] == "/chat_template_kwargs/enable_thinking"
    failed = {"role": "tool", "tool_call_id": "c", "content": "x", "is_error": True}
    asked = {"messages": [*MESSAGES, failed], "chat_template_kwargs": {"thinking_budget": 5}}
    assert answered(server, **asked).headers[UNUSED] == "/messages/1/is_error, /chat_template_kwargs/thinking_budget"
    assert post(server, chat_template_kwargs={"other": False}).status_code == 400


# ---- choices among tools


@pytest.mark.parametrize("name", NAMES)
def test_all_ways_to_name_a_tool(name: str, server: RunningServer) -> None:
    tool = {"type": "function", "function": {"name": name}}
    choices: list[Any] = [
        name,
        {"name": name},
        {"function": {"name": name}},
        {"type": "function", "name": name},
        tool,
    ]
    sources = set()
    for choice in choices:
        answer = answered(server, tools=TOOLS, tool_choice=choice, seed=CALL_SEED + NAMES.index(name)).json()
        sources.add(server.events("add")[-1]["constraint"]["source"])
        (call,) = answer["choices"][0]["message"]["tool_calls"]
        assert call["function"] == {"name": name, "arguments": ARGUMENTS}
        assert answer["choices"][0]["finish_reason"] == "stop"
    assert len(sources) == 1


def test_any_is_required_and_some_may_be_allowed(server: RunningServer) -> None:
    def told(choice: Any) -> tuple[str, int, list[str]]:
        answered(server, tools=TOOLS, tool_choice=choice, seed=CALL_SEED)
        add = server.events("add")[-1]
        return add["constraint"]["source"], add["prompt"], [entry["param"] for entry in add["constraint"]["schemas"]]

    def allowed(mode: str, *names: str) -> dict[str, Any]:
        tools = [{"type": "function", "function": {"name": name}} for name in names]
        return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}

    flat = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": n} for n in NAMES]}
    assert told("any") == told(flat)
    assert told("any") == told("required") == told({"type": "any"}) == told(allowed("required", *NAMES))
    assert told("auto") == told(allowed("auto", *NAMES)) == told({"type": "auto"}) != told("any")
    source, prompt, schemas = told(allowed("auto", "get_weather", "mcp/files:read"))
    assert schemas == ["tools[0].function.parameters", "tools[2].function.parameters"] and "a\\.b" not in source
    assert prompt == told("auto")[1], "the model is told of all, so that its prompt stays cached"
    assert post(server, tools=TOOLS, tool_choice=allowed("auto", "nope")).json()["error"]["param"] == "tool_choice"


def test_functions_are_tools_of_an_older_form(server: RunningServer) -> None:
    """The accumulators of OpenAI's client see the call too; what they have is taken back."""
    fields: dict[str, Any] = {"functions": FUNCTIONS, "seed": CALL_SEED}
    answer = answered(server, **fields).json()
    ChatCompletionShape.model_validate(answer)
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "function_call": {"name": "get_weather", "arguments": ARGUMENTS},
    }
    assert server.events("add")[-1]["constraint"]["schemas"][0]["param"] == "functions[0].parameters"
    events = [line[6:] for line in answered(server, **fields, stream=True).text.split("\n\n") if "{" in line]
    for event in events:
        ChatCompletionChunkShape.model_validate_json(event)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    with client.chat.completions.stream(model="fake", messages=MESSAGES, **fields) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.function_call is not None and message.content is None
    assert (message.function_call.name, message.function_call.arguments) == ("get_weather", ARGUMENTS)
    result = {"role": "function", "name": "get_weather", "content": "4 degrees"}
    messages = [*MESSAGES, message.model_dump(), result]
    assert (
        answered(server, messages=messages, functions=FUNCTIONS).json()["choices"][0]["message"]["content"] == "Rain."
    )
    named = answered(server, **fields, function_call={"name": "get_weather"}).json()["choices"][0]
    assert named["finish_reason"] == "stop" and named["message"]["function_call"]["arguments"] == ARGUMENTS
    assert (
        "function_call"
        not in answered(server, functions=FUNCTIONS, function_call="none").json()["choices"][0]["message"]
    )


# ---- what an operator may choose


def test_unknown_fields_are_ignored_where_the_operator_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    with running_server(monkeypatch, tmp_path, script, ignore_unknown_fields=True) as server:
        answer = answered(server, num_ctx=8192, messages=[{**MESSAGES[0], "name": "Ann", "ts": 1}], stream=True)
        assert answer.headers[UNUSED] == "/messages/0/ts, /num_ctx, /messages/0/name"
        assert UNUSED not in answered(server).headers
        assert post(server, "/v1/completions", keep_alive="5m").headers[UNUSED] == "/keep_alive"
        assert post(server, temperature=5, num_ctx=1).json()["error"]["param"] == "temperature"
        many = answered(server, **{f"é{number}": 1 for number in range(1000)}).headers[UNUSED]
        assert len(many) < 2100 and many.endswith(" more") and many.startswith("/%C3%A90, /%C3%A91")


def test_unknown_fields_are_refused_otherwise(server: RunningServer) -> None:
    error = post(server, num_ctx=8192).json()["error"]
    assert error["code"] == "unknown_parameter" and "--unknown-fields ignore" in error["message"]


def test_aliases_with_a_star(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    models, aliases = (engine_config("one"), engine_config("two")), {"gpt-4o": "one", "gpt-*": "two"}
    with running_server(monkeypatch, tmp_path, script, models=models, aliases=aliases) as server:
        for asked, full in (("gpt-4o", "one"), ("gpt-4o-mini", "two"), ("two", "two")):
            assert answered(server, model=asked).json()["model"] == full
            assert patient.get(f"{server.url}/v1/models/{asked}").json()["id"] == full
        assert post(server, model="claude").status_code == 404
