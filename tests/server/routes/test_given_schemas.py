"""Over HTTP: schemas as clients give them, and JSON text inside of JSON that holds halves of characters."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.prompt.tokenizer import ChatTokenizer
from tests.server import patient
from tests.server.fakes import RunningServer, Script, running_server

TALK: list[Any] = [{"role": "user", "content": "hi"}]
INNER = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
WRAPPED = {"name": "n", "schema": INNER}
UNUSED = "x-headrace-unused"
HALF = '{"%s":"%s"}'


@pytest.fixture(scope="module")
def script(smollm2_dir: Path, smollm2_tokenizer: ChatTokenizer) -> Script:
    ids = smollm2_tokenizer.encode("Rain.", allow_special=False)
    return Script(model_dir=str(smollm2_dir), token_ids=ids, eos_after=len(ids))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, script: Script) -> Iterator[RunningServer]:
    with (
        pytest.MonkeyPatch.context() as patch,
        running_server(patch, tmp_path_factory.mktemp("given"), script, ignore_unknown_fields=True) as running,
    ):
        yield running


def post(server: RunningServer, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
    return patient.post(server.url + path, json={"messages": TALK} | fields)


def constraint(server: RunningServer, **response_format: Any) -> dict[str, Any]:
    answer = post(server, response_format=response_format)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = server.events("add")[-1]["constraint"]
    return found


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema", "value": INNER},
        {"type": "json_schema", "value": WRAPPED},
        {"type": "json_schema", "value": json.dumps(WRAPPED)},
        {"type": "json_schema", "schema": WRAPPED},
        {"type": "json_schema", "schema": json.dumps(INNER)},
        {"type": "json_schema", "schema": INNER, "name": "n", "strict": False},
        {"type": "json_schema", "json_schema": {"name": "n", "schema": WRAPPED}},
        {"type": "json_schema", "json_schema": {"name": "", "schema": json.dumps(INNER)}},
        {"type": "json_schema", "json_schema": {"name": "n", "value": INNER}},
        {"type": "json_schema", "json_schema": {"schema": {"schema": json.dumps(WRAPPED)}}},
        {"type": "json", "value": WRAPPED},
        {"type": "json", "value": json.dumps(WRAPPED)},
        {"type": "json_object", "schema": WRAPPED},
        {"type": "json_object", "schema": INNER},
        {"type": "json_object", "value": json.dumps(INNER)},
    ],
    ids=json.dumps,
)
def test_a_schema_counts_wherever_it_stands(form: dict[str, Any], server: RunningServer) -> None:
    assert json.loads(constraint(server, **form)["source"]) == INNER


def test_a_schema_of_members_called_like_a_wrapper_s_is_none(server: RunningServer) -> None:
    for schema in ({"schema": INNER, "type": "object"}, {"schema": 5}, {"name": "n", "schema": [1]}):
        assert json.loads(constraint(server, type="json_schema", schema=schema)["source"]) == schema


def test_numbers_in_a_wrapper_stay_exact(server: RunningServer) -> None:
    number = "0.12345678901234567890123"
    schema = f'{{"name": "n", "schema": {{"const": {number}}}}}'
    for given in (schema, json.dumps(schema)):
        body = f'{{"messages": {json.dumps(TALK)}, "response_format": {{"type": "json", "value": {given}}}}}'
        headers = {"content-type": "application/json"}
        answer = patient.post(server.url + "/v1/chat/completions", content=body, headers=headers)
        assert answer.status_code == 200 and number in server.events("add")[-1]["constraint"]["source"]


def test_wrappers_say_whether_they_are_strict(server: RunningServer) -> None:
    for strict in (True, False):
        wrapped = WRAPPED | {"strict": strict}
        for form in (
            {"type": "json_schema", "value": json.dumps(wrapped)},
            {"type": "json_schema", "schema": INNER, "strict": strict},
            {"type": "json", "value": wrapped},
        ):
            assert constraint(server, **form)["strict"] is strict


@pytest.mark.parametrize(
    "schema", [{}, True, {"title": "t"}, {"type": ["array", "object"]}, {"anyOf": [{"type": "array"}, INNER]}]
)
def test_a_json_object_is_an_object_whatever_its_schema_says(schema: Any, server: RunningServer) -> None:
    for given in (schema, json.dumps(schema)):
        source = json.loads(constraint(server, type="json_object", schema=given)["source"])
        assert source == (schema if isinstance(schema, dict) else {}) | {"type": "object"}


@pytest.mark.parametrize("schema", [False, {"type": "array"}, {"type": ["null", "string"]}])
def test_a_json_object_cannot_be_something_else(schema: Any, server: RunningServer) -> None:
    error = post(server, response_format={"type": "json_object", "schema": schema})
    assert error.status_code == 400 and error.json()["error"]["param"].startswith("response_format.schema"), error.text


def test_a_tool_s_parameters_may_be_text_or_wrapped(server: RunningServer) -> None:
    sources = set()
    for parameters in (INNER, json.dumps(INNER), WRAPPED, json.dumps(WRAPPED), {"schema": INNER, "strict": None}):
        tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
        assert post(server, tools=tools, tool_choice="required").status_code == 200
        add = server.events("add")[-1]
        sources.add((add["prompt"], json.dumps(add["constraint"]["schemas"])))
    assert len(sources) == 1
    for wrong, words in (("x", "text of another kind"), ('{"type": "array"}', "'object'"), ("false", "objects")):
        refused = post(server, tools=[{"function": {"name": "f", "parameters": wrong}}])
        assert refused.status_code == 400 and words in refused.json()["error"]["message"]


# ---- halves of characters


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
@pytest.mark.parametrize("padding", [0, 40_000])
@pytest.mark.parametrize("arguments", [HALF % ("a", r"\ud800"), HALF % (r"\udc00", "b"), r'{"a":[{"b":"x\udfffy"}]}'])
def test_arguments_with_half_a_character_are_shown_as_they_were(
    path: str, padding: int, arguments: str, server: RunningServer, smollm2_tokenizer: ChatTokenizer
) -> None:
    arguments = arguments.replace("}", ' ,"p": "' + "z " * (padding // 2) + '"}', 1) if padding else arguments
    function = {"name": "f", "arguments": arguments}
    for turn in ({"tool_calls": [{"id": "c", "function": function}]}, {"function_call": function}):
        answer = post(server, path, messages=[*TALK, {"role": "assistant", **turn}, *TALK])
        if padding:  # it is read in another process, and too long for this model
            assert answer.status_code in (200, 400) and "internal" not in answer.text
            continue
        assert answer.status_code == 200, answer.text
        if path == "/tokenize":
            assert arguments in smollm2_tokenizer.decode(answer.json()["tokens"])


@pytest.mark.parametrize("schema", [HALF % ("title", r"\ud800"), r'{"enum":["\udc00"]}', HALF % (r"\ud8ff", "x")])
def test_schemas_as_text_hold_no_half_a_character(schema: str, server: RunningServer) -> None:
    fields: list[dict[str, Any]] = [
        {"response_format": {"type": "json", "value": schema}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}},
        {"response_format": {"type": "json_object", "schema": f'{{"schema":{schema}}}'}},
        {"tools": [{"function": {"name": "f", "parameters": schema}}]},
        {"grammar": f"start: %json {schema}"},
    ]
    for field in fields:
        refused = post(server, **field)
        assert refused.status_code == 400 and "surrogate" in refused.json()["error"]["message"], refused.text


# ---- unknown fields


@pytest.mark.parametrize("padding", [0, 40_000])
def test_unknown_fields_are_ignored_on_every_route(padding: int, server: RunningServer) -> None:
    """Small bodies are read in the server's own process, larger ones in another."""
    x = "x" * padding
    switch = {"chat_template_kwargs": {"enable_thinking": True}}
    bodies: list[tuple[str, dict[str, Any], str]] = [
        ("/tokenize", {"prompt": "hi", "extra": x}, "/extra"),
        ("/tokenize", {"messages": [{**TALK[0], "ts": x}]}, "/messages/0/ts"),
        ("/tokenize", {"messages": [{**TALK[0], "name": "Ann"}], "y": x, **switch},
         "/y, /messages/0/name, /chat_template_kwargs/enable_thinking"),
        ("/detokenize", {"tokens": [1], "extra": x}, "/extra"),
    ]  # fmt: skip
    for path, body, unused in bodies:
        answer = patient.post(server.url + path, json=body)
        assert answer.status_code == 200 and answer.headers[UNUSED] == unused, answer.text
