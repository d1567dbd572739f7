"""The request contract: what is accepted, what is refused, and that refusals name the field."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from server.protocol.errors import ApiError, from_request_error, overloaded, shorten, unsupported
from server.protocol.fields import field_table
from server.protocol.hints import HintFields
from server.protocol.refusals import UNSUPPORTED
from server.protocol.request import ChatCompletionRequest, parse_chat_request
from tests.clocks import assert_linear
from tests.places import SHARED
from tests.server.texts import needs_spec

MESSAGES = [{"role": "user", "content": "hi"}]


def body(**fields: Any) -> bytes:
    return json.dumps({"messages": MESSAGES, **fields}).encode()


def raw(field: str) -> bytes:
    """A body with one more field as raw JSON."""
    return b'{"messages":[{"role":"user","content":"hi"}],' + field.encode() + b"}"


def refusal(data: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_chat_request(data)
    error = caught.value
    assert error.status == 400
    assert set(error.body()["error"]) == {"message", "type", "param", "code"}
    assert len(json.dumps(error.body())) < 1500, "an error echoes little"
    assert "Input should" not in error.message and "pydantic" not in error.message
    return error


EVERYTHING = {
    "model": "m",
    "max_tokens": 5,
    "max_completion_tokens": 5,
    "temperature": 0,
    "top_p": 0.5,
    "frequency_penalty": -2,
    "presence_penalty": 2.0,
    "logprobs": True,
    "top_logprobs": 20,
    "logit_bias": {"0": -100, "17": 100.0},
    "n": 16,
    "seed": -(2**63),
    "stop": ["a", "b", "c", "x" * 1024],
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": False},
    "tools": [{"type": "function", "function": {"name": "get.it-now_2", "description": "d", "parameters": {}}}],
    "tool_choice": {"type": "function", "function": {"name": "get.it-now_2"}},
    "tool_prompt": "You have these.",
    "parallel_tool_calls": False,
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "strict": False}},
    "max_reasoning_tokens": 10,
    "user": "u",
    "metadata": {"k": "v"},
    "store": False,
    "service_tier": "auto",
    "modalities": ["text"],
    "verbosity": "medium",
    "best_of": 16,
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"mode": "explicit"},
    "safety_identifier": "s",
    "prediction": {"type": "content", "content": [{"type": "text", "text": "x"}]},
    "cache_control": {"type": "ephemeral"},
    "top_k": 3,
    "min_p": 1,
    "repetition_penalty": 10,
    "min_tokens": 0,
    "ignore_eos": False,
    "stop_token_ids": [1, 2],
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "timeout": 600,
    "priority": -1000,
    "add_generation_prompt": True,
    "continue_final_message": False,
    "chat_template_kwargs": {"enable_thinking": False},
}


INSTEAD: dict[str, Any] = {
    "grammar": 'start: "x"', "choice": ["x", "y"], "reasoning_effort": "xhigh", "function_call": "auto",
    "functions": [], "structured_outputs": {"json": {"type": "object"}},
}  # fmt: skip
"""Fields that exclude others of `EVERYTHING`."""


def test_every_supported_field_is_accepted_and_null_means_not_given() -> None:
    parsed = parse_chat_request(body(**EVERYTHING))
    assert parsed.stop_strings == ("a", "b", "c", "x" * 1024)
    for field, value in INSTEAD.items():
        found = parse_chat_request(body(**{field: value}))
        assert found.model_dump(include={field}, exclude_unset=True, by_alias=True) == {field: value}
    assert parsed.token_limit == 5
    names = set(ChatCompletionRequest.model_fields) - {"messages"}
    assert parse_chat_request(body(**dict.fromkeys(names))) == parse_chat_request(body())


def test_the_field_table_covers_exactly_the_fields_and_tells_the_truth() -> None:
    rows = field_table()
    assert [row.name for row in rows] == list(ChatCompletionRequest.model_fields)
    assert all(row.meaning and row.range for row in rows)
    refused = {row.name for row in rows if row.status in ("partly", "refused")} - {"messages"}
    assert refused == set(UNSUPPORTED)
    for row in rows:
        assert ("refused" in row.range) >= (row.status in ("partly", "refused"))
        assert row.name in EVERYTHING | INSTEAD or row.name == "messages" or row.status == "refused"
        assert (row.name in HintFields.model_fields or row.name == "user") == (row.status == "hint")


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ('"temperature":NaN', "temperature"),
        ('"temperature":1e999', "temperature"),
        ('"temperature":-Infinity', "temperature"),
        ('"temperature":2.0000001', "temperature"),
        ('"temperature":"1"', "temperature"),
        ('"temperature":true', "temperature"),
        ('"top_p":-0.1', "top_p"),
        ('"top_p":1.01', "top_p"),
        ('"frequency_penalty":2.1', "frequency_penalty"),
        ('"presence_penalty":-2.1', "presence_penalty"),
        ('"max_tokens":0', "max_tokens"),
        ('"max_tokens":-1', "max_tokens"),
        ('"max_tokens":4294967296', "max_tokens"),
        ('"max_completion_tokens":0', "max_completion_tokens"),
        ('"timeout":0', "timeout"),
        ('"timeout":86400.5', "timeout"),
        ('"timeout":"10"', "timeout"),
        ('"n":0', "n"),
        ('"n":17', "n"),
        ('"n":2147483648', "n"),
        ('"n":"2"', "n"),
        ('"seed":9223372036854775808', "seed"),
        ('"seed":1.5', "seed"),
        ('"top_logprobs":21,"logprobs":true', "top_logprobs"),
        ('"top_logprobs":2', "top_logprobs"),
        ('"top_logprobs":2,"logprobs":false', "top_logprobs"),
        ('"logit_bias":{"-1":1}', "logit_bias"),
        ('"logit_bias":{" 5":1}', "logit_bias"),
        ('"logit_bias":{"٣":1}', "logit_bias"),
        ('"logit_bias":{"05":1}', "logit_bias"),
        ('"logit_bias":{"99999999999999999999":1}', "logit_bias"),
        ('"logit_bias":{"5":101}', "logit_bias.5"),
        ('"logit_bias":{"5":NaN}', "logit_bias.5"),
        ('"logit_bias":[1.0]', "logit_bias"),
        ('"stop":["a","b","c","d","e"]', "stop"),
        ('"stop":7', "stop"),
        ('"stop":"' + "x" * 1025 + '"', "stop"),
        ('"stream":"yes"', "stream"),
        ('"stream":true,"stream_options":{"other":1}', "stream_options.other"),
        ('"user":5', "user"),
        ('"top_k":-2', "top_k"),
        ('"min_p":1.5', "min_p"),
        ('"repetition_penalty":0', "repetition_penalty"),
        ('"min_tokens":-1', "min_tokens"),
        ('"priority":1001', "priority"),
        ('"priority":-1001', "priority"),
        ('"priority":0.5', "priority"),
        ('"stop_token_ids":[-1]', "stop_token_ids[0]"),
        ('"stop_token_ids":' + str(list(range(65))), "stop_token_ids"),
        ('"chat_template_kwargs":{"a":NaN}', "chat_template_kwargs"),
        ('"max_tokens":5,"max_completion_tokens":6', "max_tokens"),
        ('"continue_final_message":true', "continue_final_message"),
        ('"tool_choice":"sometimes"', "tool_choice"),
        ('"tool_choice":5', "tool_choice"),
        ('"tools":[{"type":"code","function":{"name":"f"}}]', "tools[0].type"),
        ('"tools":[{"function":{}}]', "tools[0].function.name"),
        ('"tools":[{"function":{"name":"f","parameters":{},"arguments":{}}}]', "tools[0].function"),
        ('"tools":[{"function":{"name":"f","parameters":{"a":NaN}}}]', "tools[0].function.parameters"),
        ('"response_format":{"type":"xml"}', "response_format.type"),
        ('"response_format":{"type":"json"}', "response_format"),
        ('"response_format":{"type":"text","value":{}}', "response_format"),
        ('"response_format":{"type":"regex","value":{}}', "response_format"),
        ('"response_format":{"type":"json_schema"}', "response_format"),
        ('"response_format":{"type":"json","value":{"a":1e999}}', "response_format.value"),
        ('"response_format":{"type":"json","value":' + '{"a":' * 70 + "1" + "}" * 71, "response_format.value"),
        ('"zz":NaN', "zz"),
        ('"prompt_embeds":[1]', "prompt_embeds"),
        ('"chat_template":"{{ x }}"', "chat_template"),
    ],
)
def test_bad_values_are_refused_by_name(field: str, param: str) -> None:
    error = refusal(raw(field))
    assert error.param == param
    assert param.split(".")[-1].split("[")[0] in error.message


def test_an_integer_may_be_written_with_a_zero_fraction() -> None:
    parsed = parse_chat_request(raw('"n":2.0,"max_tokens":5e1,"seed":-0.0,"stop_token_ids":[7.0]'))
    assert (parsed.n, parsed.max_tokens, parsed.seed, parsed.stop_token_ids) == (2, 50, 0, [7])
    assert all(type(value) is int for value in (parsed.n, parsed.max_tokens, parsed.seed))
    assert refusal(raw('"n":17.0')).param == "n"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({}, "messages[0].role"),
        ({"role": "robot", "content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0]"),
        ({"role": "user"}, "messages[0]"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": []}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "sound", "text": "x"}]}, "messages[0].content[0].type"),
        (
            {"role": "user", "content": [{"type": "text", "text": "x", "image_url": {"url": "u"}}]},
            "messages[0].content[0]",
        ),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}, "messages[0].content[0].image_url"),
        ({"role": "user", "content": "x", "tool_calls": [{"id": "a", "function": {"name": "f"}}]}, "messages[0]"),
        ({"role": "user", "content": "x", "tool_call_id": "a"}, "messages[0]"),
        ({"role": "user", "content": "x", "extra": 1}, "messages[0].extra"),
        ({"role": "assistant", "content": "x", "function_call": {}}, "messages[0].function_call.name"),
        ({"role": "assistant", "content": "x", "reasoning": "a", "reasoning_content": "b"}, "messages[0]"),
        (
            {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": 5}}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "parameters": [5]}}]},
            "messages[0].tool_calls[0].function.parameters",
        ),
        (
            {
                "role": "assistant",
                "tool_calls": [{"id": "a", "function": {"name": "f", "parameters": "{}", "arguments": "{}"}}],
            },
            "messages[0].tool_calls[0].function",
        ),
    ],
)
def test_bad_messages_are_refused_by_path(message: dict[str, Any], param: str) -> None:
    error = refusal(json.dumps({"messages": [message]}).encode())
    assert error.param == param


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not valid JSON"),
        (b"[]", "must be an object"),
        (b"null", "must be an object"),
        (b"{} x", "not valid JSON"),
        (b"{}", "Missing required field: messages"),
        (b'{"messages":[]}', "at least 1"),
        (b"\xef\xbb\xbf" + body(), "not valid JSON"),
        (body().decode().encode("utf-16"), "not valid JSON"),
        (raw('"user":"\\ud800"'), "not valid JSON"),
        (raw('"\\udfff":1'), "not valid JSON"),
        (raw('"user":"x').replace(b"x", b"\xff"), "not valid JSON"),
        (raw('"seed":' + "9" * 5000), "not valid JSON"),
        (raw('"tools":' + "[" * 100_000 + "]" * 100_000), "not valid JSON"),
        (raw('"n":1,"n":2'), "key 'n' twice"),
        (
            raw('"response_format":{"type":"json","value":"{\\"type\\":1,\\"type\\":2}"}'),
            "value names the key 'type' twice",
        ),
        (
            raw('"response_format":{"type":"json_object","value":"{\\"a\\":[{\\"b\\":1,\\"b\\":1}]}"}'),
            "value names the key 'b' twice",
        ),
        (
            raw('"grammar":"start: a\\na: %json {\\"type\\":\\"string\\",\\"type\\":\\"null\\"}"'),
            "grammar names the key 'type' twice",
        ),
        (b'{"messages":[{"role":"user","role":"system","content":"x"}]}', "key 'role' twice"),
    ],
)
def test_malformed_bodies(data: bytes, words: str) -> None:
    assert words in refusal(data).message


HUGE_BODIES: dict[str, tuple[int, Callable[[int], bytes]]] = {
    "keys": (40_000, lambda size: b"{" + b",".join(b'"k%d":1' % i for i in range(size)) + b"}"),
    "messages": (12_500, lambda size: json.dumps({"messages": [{"role": "user", "content": "x"}] * size}).encode()),
    "logit_bias": (5_000, lambda size: body(logit_bias={str(i): 1 for i in range(size)})),
    "stop": (50_000, lambda size: body(stop=["x"] * size)),
    "a value": (1_000_000, lambda size: body(x="y" * size)),
    "a key": (1_000_000, lambda size: body(**{"z" * size: 1})),
}
"""By what there is much of: a size, and the body of a size."""


@pytest.mark.parametrize("name", HUGE_BODIES)
def test_the_refusal_of_a_huge_body_takes_linear_time(name: str) -> None:
    size, make = HUGE_BODIES[name]

    def work(size: int) -> Callable[[], object]:
        data = make(size)
        return lambda: refusal(data)

    assert_linear(work, size)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"store": True}, "store"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"verbosity": "low"}, "verbosity"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"moderation": {}}, "moderation"),
        ({"best_of": 2}, "best_of"),
    ],
)
def test_what_is_not_done_yet_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refusal(body(**fields))
    assert error.code == "unsupported_parameter"
    assert error.param == param


TOOL = {"type": "function", "function": {"name": "f"}}
OBJECT = {"type": "json_object"}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name", "as that of a tool before it"),
        ({"tools": [{"function": {"name": "a b"}}]}, "tools[0].function.name", "got 'a b'"),
        ({"tools": [{"function": {"name": "x" * 65}}]}, "tools[0].function.name", "1 to 64"),
        (
            {"tools": [{"function": {"name": "f", "parameters": {"type": "array"}}}]},
            "tools[0].function.parameters.type",
            "must be 'object'",
        ),
        ({"tools": [TOOL], "tool_choice": {"function": {"name": "g"}}}, "tool_choice", "'g', which is not among"),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"tools": [], "tool_choice": {"function": {"name": "f"}}}, "tool_choice", "there are no tools"),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice", "'sometimes', which is not among"),
        ({"functions": [TOOL["function"]], "function_call": {"name": "g"}}, "function_call", "'g', which is not among"),
        ({"function_call": {"name": "f"}}, "function_call", "there are no tools"),
        ({"tools": [TOOL], "functions": [TOOL["function"]]}, "functions", "the older name of tools"),
        ({"functions": [{"name": "a b"}]}, "functions[0].name", "got 'a b'"),
        ({"tool_prompt": "x"}, "tool_prompt", "needs tools"),
        ({"response_format": OBJECT, "grammar": 'start: "x"'}, "grammar", "response_format and grammar both"),
        ({"grammar": 'start: "x"', "choice": ["x"]}, "choice", "grammar and choice both"),
        ({"choice": []}, "choice", "at least 1"),
        ({"choice": [""]}, "choice[0]", "at least 1"),
        ({"response_format": {"type": "json", "value": "{"}}, "response_format.value", "text of another kind"),
        ({"response_format": OBJECT | {"value": 3}}, "response_format", "must have a JSON Schema"),
        ({"response_format": OBJECT | {"value": {}, "schema": {}}}, "response_format", "'value' or 'schema', not both"),
        ({"response_format": {"type": "regex", "schema": {}}}, "response_format", "has no 'schema'"),
        ({"reasoning_effort": "low", "max_reasoning_tokens": 1}, "max_reasoning_tokens", "both limit"),
        ({"reasoning_effort": "huge"}, "reasoning_effort", "'none', 'minimal'"),
    ],
)
def test_tools_and_constraints_that_make_no_sense(fields: dict[str, Any], param: str, words: str) -> None:
    error = refusal(body(**fields))
    assert (error.param, words in error.message) == (param, True), error.message


@pytest.mark.parametrize(
    ("fields", "kind", "source", "param"),
    [
        ({"response_format": OBJECT}, "json_schema", '{"type": "object"}', "response_format"),
        ({"response_format": {"type": "json", "value": {"a": 1}}}, "json_schema", '{"a":1}', "response_format.value"),
        (
            {"response_format": OBJECT | {"value": {"a": 1}}},
            "json_schema",
            '{"type":"object","a":1}',
            "response_format.value",
        ),
        ({"response_format": {"type": "json", "value": "true"}}, "json_schema", "true", "response_format.value"),
        (
            {"response_format": OBJECT | {"schema": {"a": 1}}},
            "json_schema",
            '{"type":"object","a":1}',
            "response_format.schema",
        ),
        ({"response_format": {"type": "json", "schema": {"a": 1}}}, "json_schema", '{"a":1}', "response_format.schema"),
        (
            {"response_format": {"type": "json_schema", "value": {"type": "object"}}},
            "json_schema",
            '{"type":"object"}',
            "response_format.value",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "value": {"name": "n", "schema": {"maximum": 0.1234567890123456789}},
                }
            },
            "json_schema",
            '{"maximum":0.12345678901234568}',
            "response_format.value.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"a": 1}}}},
            "json_schema",
            '{"a":1}',
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "regex", "value": "a|b"}}, "regex", "a|b", "response_format.value"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"é": 1}}}},
            "json_schema",
            '{"é":1}',
            "response_format.json_schema.schema",
        ),
        ({"grammar": "start: /a/"}, "lark", "start: /a/", "grammar"),
        ({"choice": ["a.b", "c\n", "a.b"]}, "regex", r"(a\.b|c\n)", "choice"),
    ],
)
def test_all_spellings_of_a_constraint(fields: dict[str, Any], kind: str, source: str, param: str) -> None:
    constraint = parse_chat_request(body(**fields)).constraint()
    assert constraint is not None
    assert (constraint.kind, constraint.source, constraint.param) == (kind, source, param)
    assert parse_chat_request(body(response_format={"type": "text"})).constraint() is None


def test_the_schema_of_a_tool() -> None:
    def schema(**function: Any) -> dict[str, Any]:
        tools = parse_chat_request(body(tools=[{"type": "function", "function": {"name": "f", **function}}])).tools
        assert tools is not None
        return tools[0].schema_

    nothing = {"type": "object", "properties": {}}
    assert schema() == schema(parameters={}) == schema(parameters=None) == schema(arguments=None) == nothing
    assert schema(parameters={"type": "object"}) == schema(parameters={"type": "object", "properties": None}) == nothing
    assert schema(parameters={"type": ["object", "null"], "required": []}) == {**nothing, "required": []}
    anything = {"type": "object", "additionalProperties": True}
    assert schema(parameters=anything) == anything
    assert schema(arguments={"required": ["a"]}) == {"type": "object", "required": ["a"]}
    assert schema(parameters={"type": ["object", "null"], "x": 1}) == {"type": "object", "x": 1}
    [(_, tool)] = parse_chat_request(body(tools=[TOOL | {"function": {"name": "f", "strict": True}}])).usable_tools
    assert tool.plain() == {"type": "function", "function": {"name": "f", "parameters": nothing}}
    assert parse_chat_request(body(tools=[TOOL], tool_choice="none")).usable_tools == []


def test_an_answer_is_accepted_back_as_history() -> None:
    answer = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "reasoning_content": "because",
        "tool_calls": [
            {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "b", "type": "function", "function": {"name": "f", "description": None, "arguments": {"x": 1}}},
        ],
    }
    tool = {"role": "tool", "tool_call_id": "a", "name": "f", "content": [{"type": "text", "text": "done"}]}
    parsed = parse_chat_request(json.dumps({"messages": [*MESSAGES, answer, tool]}).encode())
    assert parsed.messages[1].tool_calls is not None
    assert parsed.messages[1].tool_calls[1].function.arguments == {"x": 1}


def test_arguments_of_a_call_may_come_as_parameters() -> None:
    """Hugging Face's schema of a request and its client's types have them under this name."""
    call = {"id": "a", "type": "function", "function": {"name": "f", "parameters": {"x": 1}}}
    turn = {"role": "assistant", "tool_calls": [call]}
    parsed = parse_chat_request(json.dumps({"messages": [*MESSAGES, turn]}).encode())
    assert parsed.messages[1].plain()["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}


HUGGING_FACE_VALUES: dict[str, list[Any]] = {
    "frequency_penalty": [1.0],
    "logit_bias": [],
    "logprobs": [True],
    "max_tokens": [32],
    "messages": [
        [{"role": "user", "name": "David", "content": "x"}],
        [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]}],
        [{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f"}}]}],
        [
            {
                "role": "assistant",
                "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "parameters": {"x": 1}}}],
            }
        ],
    ],
    "model": ["m"],
    "n": [2],
    "presence_penalty": [0.1],
    "reasoning_effort": ["low"],
    "response_format": [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "a"}},
    ],
    "seed": [42],
    "stop": [["a", "b"], []],
    "stream": [True],
    "stream_options": [{"include_usage": True}],
    "temperature": [1],
    "tool_choice": ["auto", "none", "required", {"function": {"name": "f"}}],
    "tool_prompt": ["x"],
    "tools": [[{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]],
    "top_logprobs": [5],
    "top_p": [0.95],
}


@needs_spec
def test_what_the_hugging_face_schema_allows_is_understood() -> None:
    schema = json.loads((SHARED / "spec" / "hf-chat-completion-input.json").read_text())
    assert set(schema["properties"]) == set(HUGGING_FACE_VALUES)
    tools = {"tools": [{"type": "function", "function": {"name": "f"}}]}
    companions: dict[str, dict[str, Any]] = {
        "top_logprobs": {"logprobs": True},
        "stream_options": {"stream": True},
        "tool_choice": tools,
        "tool_prompt": tools,
    }
    for name, values in HUGGING_FACE_VALUES.items():
        for value in values:
            request = {"messages": MESSAGES, **companions.get(name, {}), name: value}
            Draft7Validator(schema).validate(request)
            try:
                parse_chat_request(json.dumps(request).encode())
            except ApiError as error:
                assert error.code == "unsupported_parameter", error.message
                assert error.param is not None and error.param.startswith(name)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(ChatCompletionRequest.model_fields)), json_values, max_size=4))
def test_any_json_is_parsed_or_refused(fields: dict[str, Any]) -> None:
    try:
        parse_chat_request(json.dumps({"messages": MESSAGES} | fields).encode())
    except ApiError as error:
        assert error.status == 400
        json.dumps(error.body()).encode()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_refused(data: bytes) -> None:
    refusal(data)


def test_error_helpers() -> None:
    from engine.errors import RequestError

    assert overloaded("full", retry_after=3, reason="x").headers == {"Retry-After": "3"}
    assert unsupported("tools", "no").body()["error"]["code"] == "unsupported_parameter"
    converted = from_request_error(RequestError("bad", param="seed", code="c"))
    assert (converted.status, converted.param, converted.code) == (400, "seed", "c")
    assert len(shorten("x" * 10_000)) < 150
    assert shorten(10**400) == "a number of many digits"
    assert shorten([1] * 9) == "an array of 9"
    assert shorten(True) == "true" and shorten(None) == "null"
