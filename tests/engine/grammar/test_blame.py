"""What the library refuses in a schema is named by keyword and JSON pointer, though the library does not say where."""

import json
from functools import cache
from typing import Any

import pytest

from engine.constraint import Constraint, SchemaSource
from engine.grammar.worker import Answer, Compilers, Job
from tests.engine.grammar.test_grammar import VOCABULARY


@cache
def compilers() -> Compilers:
    return Compilers(VOCABULARY)


def answer(constraint: Constraint) -> Answer:
    return compilers().compile(Job(constraint, "llguidance"))


DEEP = {
    "properties": {"a": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/b"}]}},
    "$defs": {"b": {"items": {"type": "string", "pattern": "x\\p{No}(y)\\1"}}},
}
BLAMED: dict[str, Any] = {
    "/pattern": {"type": "string", "pattern": "(?<=a$)b"},
    "/multipleOf": {"type": "number", "multipleOf": 0.3, "minimum": 1},
    "/minLength": {"type": "string", "minLength": 5, "maxLength": 2},
    "/properties/a/pattern": {"properties": {"a": {"type": "string", "pattern": "a^b"}}, "required": ["a"]},
    "/allOf": {"type": "string", "allOf": [{"pattern": "^(?=.*a)(?=.*b)"}, {"maxLength": 1}]},
    "/patternProperties": {"patternProperties": {"(": {"type": "null"}}},
    "/items": {"type": "array", "items": False, "minItems": 1},
    "/properties/a~1b/items/pattern": {"properties": {"c": {"pattern": "x"}, "a/b": {"items": {"pattern": "("}}}},
    "/$defs/b/items/pattern": DEEP,
}


@pytest.mark.parametrize("pointer", BLAMED)
def test_keyword_and_pointer_are_named(pointer: str) -> None:
    schema = json.dumps(BLAMED[pointer])
    refused = answer(Constraint(kind="json_schema", source=schema, param="response_format.value"))
    keyword = pointer.rpartition("/")[2]
    assert refused.error is not None and refused.error_param == "response_format.value"
    assert refused.error.startswith(f"response_format.value at {pointer}: '{keyword}' cannot be followed: ")
    assert "json-schema:" not in refused.error


def test_in_a_tool_too() -> None:
    schemas = tuple(SchemaSource(param=f"tools[{n}]", schema=json.dumps(schema)) for n, schema in enumerate(({}, DEEP)))
    refused = answer(Constraint(kind="lark", source='start: schema_0 "," schema_1', param="tools", schemas=schemas))
    assert refused.error_param == "tools[1]"
    assert (refused.error or "").startswith("tools[1] at /$defs/b/items/pattern: 'pattern' ")


def test_an_expression_is_quoted_whole() -> None:
    refused = answer(Constraint(kind="regex", source="(?<=a$)b", param="response_format.value"))
    assert "(?<=a$)b" in (refused.error or "") and "lookbehind" in (refused.error or "")
