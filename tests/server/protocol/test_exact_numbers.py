"""The numbers of a request's schemas reach the grammar as they were written."""

import json
from typing import Any

import pytest

from server.protocol.errors import ApiError
from server.protocol.exact_numbers import ExactFloat, exact_body, schema_text
from server.protocol.request import parse_chat_request

SCHEMA = (
    '{"type":"object","properties":{"a":{"const":0.12345678901234567890123},"b":{"maximum":18446744073709551615},'
    '"c":{"enum":[1234567890123456789,1E+21,0.5]}}}'
)
FORMATS = {
    "json_schema": '{"type": "json_schema", "json_schema": {"name": "x", "schema": %s}}',
    "json": '{"type": "json", "value": %s}',
    "json_object": '{"type": "json_object", "value": %s}',
}


def body(field: str) -> bytes:
    return b'{"messages": [{"role": "user", "content": "hi"}], ' + field.encode() + b"}"


def digits(text: str) -> Any:
    return json.loads(text, parse_float=str)


@pytest.mark.parametrize("kind", FORMATS)
def test_of_a_response_format(kind: str) -> None:
    request = parse_chat_request(body(f'"response_format": {FORMATS[kind] % SCHEMA}'))
    constraint = request.constraint()
    assert constraint is not None and digits(constraint.source) == digits(SCHEMA)


@pytest.mark.parametrize("name", ["parameters", "arguments"])
def test_of_a_tool(name: str) -> None:
    plain = '{"type": "function", "function": {"name": "f"}}'
    exact = f'{{"type": "function", "function": {{"name": "g", "{name}": {SCHEMA}}}}}'
    request = parse_chat_request(body(f'"tools": [{plain}, {exact}]'))
    assert request.tools is not None
    assert digits(schema_text(request.tools[1].schema_)) == digits(SCHEMA)
    assert json.loads(json.dumps(request.tools[1].plain()))["function"]["parameters"] == json.loads(SCHEMA)


def test_doubles_are_read_once() -> None:
    assert exact_body(b'{"temperature": 0.7, "seed": 12345678901}') is None
    assert exact_body(b'{"x": 0.12345678901234567') is None
    assert isinstance(exact_body(b'{"x": 0.12345678901234567}')["x"], ExactFloat)


@pytest.mark.parametrize(("number", "said"), [("1" + "0" * 500, "beyond 400 digits"), ("1e999", "finite")])
def test_absurd_numbers_are_refused(number: str, said: str) -> None:
    schema = f'{{"const": {number}}}'
    with pytest.raises(ApiError, match=said):
        parse_chat_request(body(f'"response_format": {FORMATS["json"] % schema}'))
