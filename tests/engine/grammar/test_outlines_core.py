"""What the backend outlines_core follows of a JSON Schema is valid; the rest is refused by keyword and pointer."""

import json
import random
from typing import Any

import jsonschema
import pytest

from engine.errors import RequestError
from tests.engine.grammar.test_grammar import EOS, allowed, compiled

FOLLOWED: list[Any] = [
    {"type": "object", "properties": {"a.b": {"type": "integer"}, "c": {"type": "null"}}, "required": ["a.b"]},
    {"properties": {"a": {"type": "boolean"}}, "additionalProperties": False},
    {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "integer"}},
    {"type": ["string", "integer"], "minLength": 3},
    {"type": "string", "maxLength": 3},
    {"type": "string", "pattern": "^[a-c]{2}(x|é)$"},
    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"const": "x"}]},
    {"type": "string", "enum": ['a"b', "é\n"]},
    {"const": [1, {"b": None}, '"']},
    {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/a"}], "$defs": {"a": {"enum": [None, False]}}},
]
REFUSED = {
    "/minimum": {"type": "integer", "minimum": 3},
    "/properties/a~1b/minimum": {"properties": {"a/b": {"type": "integer", "minimum": 3}}},
    "/anyOf/1/format": {"anyOf": [{"type": "null"}, {"type": "string", "format": "date"}]},
    "/additionalProperties/enum": {"type": "object", "additionalProperties": {"type": "string", "enum": [1]}},
    "/type": {"anyOf": [{"type": "string"}, {"type": "null"}], "type": "null"},
    "/required": {"type": "object", "required": ["a"]},
    "/properties": {"properties": {'a"b': {"type": "null"}}},
    "/items": {"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "integer"}},
    "/pattern": {"type": "string", "pattern": "^[^a]$"},
    "/enum": {"type": "integer", "enum": ["a", 1]},
    "/const": {"const": 1, "enum": [1, 2]},
    "/items/const": {"type": "array", "items": {"const": [{'"': 1}]}},
    "/minLength": {"type": "string", "minLength": True},
    "/$defs/a/uniqueItems": {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "uniqueItems": True}}},
}


def walk(schema: Any, seed: int) -> bytes | None:
    """One of the texts that the automaton accepts; None if it went on too long."""
    grammar, dice, text = compiled("json_schema", json.dumps(schema), "outlines_core"), random.Random(seed), bytearray()
    while not grammar.is_finished:
        tokens = allowed(grammar)
        assert tokens, "a dead end"
        if len(text) > 200:
            return None
        if EOS in tokens and dice.random() < 0.5:
            break
        byte = dice.choice(sorted(token for token in tokens if token < 256))
        grammar.accept(byte)
        text.append(byte)
    return bytes(text)


@pytest.mark.parametrize("schema", FOLLOWED, ids=json.dumps)
def test_whatever_comes_is_valid(schema: Any) -> None:
    texts = [text for seed in range(25) if (text := walk(schema, seed)) is not None]
    assert texts
    for text in texts:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize("pointer", REFUSED)
def test_what_it_would_pass_over_is_refused(pointer: str) -> None:
    with pytest.raises(RequestError) as caught:
        compiled("json_schema", json.dumps(REFUSED[pointer]), "outlines_core")
    assert caught.value.message.startswith(f"response_format at {pointer}: ")


@pytest.mark.parametrize(
    "schema", [{"properties": []}, {"items": True}, {"$defs": 3, "$ref": "#/$defs/a"}, [], {"enum": []}]
)
def test_what_is_no_schema_is_refused(schema: Any) -> None:
    with pytest.raises(RequestError):
        compiled("json_schema", json.dumps(schema), "outlines_core")
