"""`unevaluatedProperties`, `unevaluatedItems`, `minContains`, and arrays whose items leave each other few values."""

from itertools import product
from typing import Any

import jsonschema
import pytest

from engine.errors import RequestError
from engine.grammar.schema.prepare import prepare_schema
from tests.engine.grammar.test_schema import accepts, matcher, matcher_of
from tests.engine.grammar.walks import repeats_nothing

A = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
B = {"type": "object", "properties": {"b": {"type": "string"}}, "required": ["b"]}
ITEMS = {"type": "array", "items": {"type": "integer"}}
OBJECTS = [{}, {"a": 1}, {"b": "x"}, {"a": 1, "b": "x"}, {"a": 1, "c": 1}, {"a": 1, "b": "x", "c": 1}, {"x1": 2}]
ARRAYS = [list(items) for size in range(5) for items in product([1, 2, 3, "x"], repeat=size)]
SCHEMAS: dict[str, dict[str, Any]] = {
    "an intersection": {"allOf": [A, B], "unevaluatedProperties": False},
    "a base": {"$ref": "#/$defs/a", "unevaluatedProperties": False, "$defs": {"a": A}},
    "a base beside members": {"allOf": [{"$ref": "#/$defs/a"}], "properties": {"b": {}}, "unevaluatedProperties": False,
                              "$defs": {"a": A}},
    "patterns": {"allOf": [{"patternProperties": {"^x": {"const": 2}}}], "unevaluatedProperties": False},
    "a schema for the rest": {"allOf": [A], "unevaluatedProperties": {"type": "integer"}},
    "anything for the rest": {"anyOf": [A, B], "unevaluatedProperties": True},
    "all evaluated": {"allOf": [{**A, "additionalProperties": True}], "unevaluatedProperties": False},
    "additional ones evaluated": {"additionalProperties": {}, "anyOf": [A, B], "unevaluatedProperties": False},
    "items": {**ITEMS, "unevaluatedItems": False},
    "first items": {"type": "array", "prefixItems": [{}, {}], "unevaluatedItems": False},
    "first items of a part": {"allOf": [{"prefixItems": [{"const": 1}]}, {"prefixItems": [{}, {}]}],
                              "unevaluatedItems": {"const": 3}},
    "no items": {"type": "array", "unevaluatedItems": False},
    "two of them": {"type": "array", "contains": {"const": 1}, "minContains": 2},
    "three of them": {"type": "array", "contains": {"type": "integer"}, "minContains": 3, "maxItems": 4},
    "five of them": {"type": "array", "contains": {"const": 1}, "minContains": 5},
    "one or the other": {"type": "array", "prefixItems": [{"const": 1}, {"enum": [1, 2]}], "items": False,
                         "uniqueItems": True, "minItems": 2},
    "each of two": {"type": "array", "prefixItems": [{"enum": [1, 2]}, {"enum": [2, 3]}, {"enum": [1, 3]}],
                    "items": False, "uniqueItems": True, "minItems": 3},
    "two of which one is": {"type": "array", "contains": {"const": 1}, "items": {"enum": [1, 2]}, "minItems": 2,
                            "uniqueItems": True},
    "a first and others": {"type": "array", "prefixItems": [{"enum": [1, 2]}, {"enum": [1, 2, 3]}],
                           "items": {"enum": [2, 3]}, "uniqueItems": True, "minItems": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_valid_is_accepted_and_nothing_else(name: str) -> None:
    schema = SCHEMAS[name]
    grammar, valid = matcher(schema), jsonschema.Draft202012Validator(schema).is_valid
    written = prepare_schema(schema, param="x", closes=False)
    for value in ARRAYS if schema.get("type") == "array" or "Items" in str(schema) else OBJECTS:
        taken = accepts(grammar, value) and (written.items == "any" or repeats_nothing(written, value))
        assert taken is valid(value), value


@pytest.mark.parametrize("keyword", ["unevaluatedProperties", "unevaluatedItems"])
def test_what_depends_on_the_value_is_refused_by_name(keyword: str) -> None:
    with pytest.raises(RequestError, match=f"'{keyword}' beside 'anyOf' cannot be followed"):
        prepare_schema({"anyOf": [A, ITEMS], keyword: False}, param="x")


def test_an_intersection_is_closed() -> None:
    grammar = matcher_of(prepare_schema(SCHEMAS["an intersection"], param="x"))
    assert accepts(grammar, {"a": 1, "b": "x"}) and not accepts(grammar, {"a": 1, "b": "x", "c": 1})
