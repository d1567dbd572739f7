"""Fields that do not exist: the refusal says how to send what was meant, and who ignores them is told which."""

import json
from typing import Any

import pytest

from server.protocol.completion_request import read_completion_request
from server.protocol.errors import ApiError
from server.protocol.request import parse_chat_request, read_chat_request
from server.protocol.unknown_fields import ELSEWHERE, parse_body
from tests.clocks import assert_linear

TALK = [{"role": "user", "content": "hi"}]


def body(**fields: Any) -> bytes:
    return json.dumps({"messages": TALK, **fields}).encode()


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"extra_body": {"top_k": 5}}, "extra_body", "argument of OpenAI's client"),
        ({"extra_bodi": {}}, "extra_bodi", "--unknown-fields ignore"),
        ({"max_token": 5}, "max_token", "did you mean max_tokens?"),
        ({"temprature": 0}, "temprature", "did you mean temperature?"),
        ({"response-format": {}}, "response-format", "did you mean response_format?"),
        ({"guided_json": {}}, "guided_json", "here it is response_format"),
        ({"enable_thinking": True}, "enable_thinking", "here it is chat_template_kwargs"),
        ({"num_predict": 5}, "num_predict", "here it is max_tokens"),
        ({"x" * 300: 5}, "x" * 97 + "...", "Unknown field"),
        ({"stream_options": {"include_usages": True}}, "stream_options.include_usages", "did you mean include_usage?"),
        ({"stream_options": {"temperature": 1}}, "stream_options.temperature", "a field of the request itself"),
        ({"messages": [{**TALK[0], "contents": "x"}]}, "messages[0].contents", "did you mean content?"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache_controls": {}}]}]},
            "messages[0].content[0].cache_controls",
            "did you mean cache_control?",
        ),
        (
            {"tools": [{"function": {"name": "f", "parameter": {}}}]},
            "tools[0].function.parameter",
            "did you mean parameters?",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schemas": {}}}},
            "response_format.json_schema.schemas",
            "did you mean schema?",
        ),
        ({"tool_choice": {"function": {"nam": "f"}}}, "tool_choice.function.name", "Missing required field"),
    ],
)
def test_the_refusal_says_how_to_send_it(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_chat_request(body(**fields))
    error = caught.value
    assert (error.status, error.param) == (400, param) and words in error.message, error.message
    assert error.code == ("missing_required_parameter" if "Missing" in words else "unknown_parameter")


def test_what_is_said_to_be_here_is_here() -> None:
    known = set(read_chat_request(body())[0].model_fields_set) | set(type(read_chat_request(body())[0]).model_fields)
    for name, here in ELSEWHERE.items():
        assert name not in known
        assert any(word.strip(",") in known for word in here.split()) or "message" in here, here


def test_unknown_fields_are_left_out_and_named() -> None:
    sent = body(
        num_ctx=8192,
        tools=[
            {"type": "function", "function": {"name": "f", "parameters": {"maximum": 1.00000000000000000001}, "x/y": 1}}
        ],
        stream_options={"other": 1, "include_usage": True},
        messages=[{"role": "user", "content": [{"type": "text", "text": "x", "extra": {}}], "~": 1}],
        tool_choice={"type": "function", "function": {"name": "f"}, "more": 1},
        temperature=0.1,
    ).replace(b'"maximum": 1.0', b'"maximum": 1.00000000000000000001')
    request, ignored = read_chat_request(sent, ignore_unknown=True)
    assert sorted(ignored) == [
        "/messages/0/content/0/extra",
        "/messages/0/~0",
        "/num_ctx",
        "/stream_options/other",
        "/tool_choice/more",
        "/tools/0/function/x~1y",
    ]
    assert request.temperature == 0.1 and request.chosen.names == ("f",) and request.stream_options is not None
    assert request.messages[0].plain()["content"] == [{"type": "text", "text": "x"}]
    maximum = request.declared_tools[0].schema_["maximum"]
    assert maximum.written == "1.00000000000000000001", "numbers stay exact"
    assert read_completion_request(b'{"prompt": "x", "best": 1}', ignore_unknown=True)[1] == ("/best",)


@pytest.mark.parametrize("fields", [{"temperature": 3}, {"messages": []}, {"store": True}, {"n": 1.5}])
def test_what_is_wrong_is_refused_all_the_same(fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        read_chat_request(body(unknown=1, **fields), ignore_unknown=True)
    assert caught.value.param == next(iter(fields))


def test_the_work_is_linear() -> None:
    from server.protocol.request import ChatCompletionRequest

    def work(size: int) -> Any:
        data = body(**{f"field {number}": 1 for number in range(size)})
        return lambda: parse_body(ChatCompletionRequest, data, ignore_unknown=True)

    assert_linear(work, 2000)
