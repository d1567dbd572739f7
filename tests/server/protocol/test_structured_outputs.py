"""vLLM's `structured_outputs` means what response_format, grammar and choice mean."""

import json
from typing import Any

import pytest

from engine.constraint import Constraint
from server.protocol.completion_request import parse_completion_request
from server.protocol.errors import ApiError
from server.protocol.request import parse_chat_request

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
NOTHING = {"whitespace_pattern": None, "structural_tag": None, "disable_fallback": False, "json_object": False}


def constraints(text: str) -> list[Constraint | None]:
    """Of a chat and of a completion that has `text` for its structured_outputs."""
    chat = b'{"messages": [{"role": "user", "content": "hi"}], "structured_outputs": %b}' % text.encode()
    return [
        parse_chat_request(chat).constraint(),
        parse_completion_request(b'{"prompt": "hi", "structured_outputs": %b}' % text.encode()).constraint(),
    ]


@pytest.mark.parametrize(
    ("text", "kind", "source", "param"),
    [
        ('{"regex": "[0-9]+"}', "regex", "[0-9]+", "regex"),
        ('{"choice": ["a", "b", "a"]}', "regex", "(a|b)", "choice"),
        ('{"grammar": "start: \\"a\\""}', "lark", 'start: "a"', "grammar"),
        ('{"json": {"const": 1234567890123456789.25}}', "json_schema", '{"const":1234567890123456789.25}', "json"),
        ('{"json": "{\\"const\\": 1.50}"}', "json_schema", '{"const": 1.50}', "json"),
        ('{"json": {"schema": {"const": 1}}}', "json_schema", '{"const":1}', "json.schema"),
        ('{"json_object": true}', "json_schema", '{"type": "object"}', ""),
    ],
)
def test_each_way_to_say_it(text: str, kind: str, source: str, param: str) -> None:
    for found in constraints(text):
        assert found is not None and (found.kind, found.source) == (kind, source)
        assert found.param == ".".join(("structured_outputs", *filter(None, [param])))
        assert kind != "json_schema" or found.strict, "vLLM follows a schema or refuses it"


def test_what_asks_for_nothing_is_taken() -> None:
    assert constraints(json.dumps({"regex": "a", **NOTHING})) == constraints('{"regex": "a"}')
    assert constraints("null") == [None, None]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "got none"),
        (NOTHING, "got none"),
        ({"regex": "a", "json": {}}, "got 'json' and 'regex'"),
        ({"regex": "a", "whitespace_pattern": " "}, "has no 'whitespace_pattern'"),
        ({"structural_tag": "{}"}, "has no 'structural_tag'"),
        ({"regex": "a", "disable_any_whitespace": True}, "'disable_any_whitespace' of false"),
        ({"choice": []}, "structured_outputs.choice"),
        ({"json": 5}, "JSON Schema"),
        ({"json": "{"}, "JSON Schema"),
        ({"regexp": "a"}, "did you mean regex?"),
    ],
)
def test_what_is_wrong_is_refused_by_name(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ApiError, match=words.replace("?", "[?]")) as caught:
        parse_chat_request(json.dumps(CHAT | {"structured_outputs": given}).encode())
    assert caught.value.status == 400 and (caught.value.param or "").startswith("structured_outputs")


@pytest.mark.parametrize("other", [{"response_format": {"type": "json_object"}}, {"choice": ["a"]}])
def test_it_excludes_the_other_spellings(other: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match="both constrain the answer"):
        parse_chat_request(json.dumps(CHAT | {"structured_outputs": {"regex": "a"}} | other).encode())
