"""A schema without `type` means the type that its keywords speak of, whatever they are rewritten into."""

from typing import Any

import pytest

from engine.grammar.schema.prepare import prepare_schema
from engine.grammar.schema.relaxing import Relaxing
from tests.engine.grammar.test_schema import accepts, matcher_of

BASE = {"properties": {"a": {"type": "integer"}}, "required": ["a"]}
MORE = {"properties": {"c": {"type": "string"}}}
DEFINITIONS = {"base": BASE, "more": MORE, "list": {"contains": {"const": 5}}}
TO_BASE, TO_MORE, TO_LIST = ({"$ref": f"#/$defs/{name}"} for name in DEFINITIONS)
OF_EVERY_TYPE: list[Any] = ["x", None, 5, True, 1.5, [1], {"zz": 9}]
CASES: list[tuple[dict[str, Any], list[Any]]] = [
    ({"contains": {"const": 5}}, [[5], [1, 5]]),
    ({"contains": {"const": 5}, "minContains": 1}, [[5]]),
    ({"contains": {"const": 5}, "minContains": 0}, [[1]]),
    ({"contains": {}}, [[1]]),
    ({"uniqueItems": True}, [[1]]),
    ({"items": [{"type": "integer"}], "additionalItems": False}, [[1]]),
    ({"dependentRequired": {"a": ["b"]}}, [{}]),
    ({"dependentSchemas": {"a": {"required": ["b"]}}}, [{}]),
    ({"dependencies": {"a": ["b"]}}, [{}]),
    ({"dependencies": {"a": {"required": ["b"]}}}, [{}]),
    ({"propertyNames": {"pattern": "^a"}}, [{"a": 1}]),
    ({"propertyNames": {"type": "string"}}, [{"a": 1}]),
    ({"unevaluatedProperties": False}, [{}]),
    ({"contentEncoding": "base64"}, ["x"]),
    ({"format": "date"}, ["2020-01-01"]),
    ({"format": "password"}, ["x"]),
    ({"format": "int32"}, [5, 1.5]),
    ({"not": {"required": ["q"]}}, [{}]),
    ({"not": {"minLength": 3}}, ["ab"]),
    ({"if": {"properties": {"a": {"const": 1}}}, "then": {"required": ["b"]}}, [{"b": 1}]),
    ({"allOf": [TO_BASE, MORE]}, [{"a": 1}, {"a": 1, "c": "x"}]),
    ({"allOf": [TO_BASE, TO_MORE]}, [{"a": 1}, {"a": 1, "c": "x"}]),
    ({"allOf": [TO_BASE], "properties": {"z": {}}}, [{"a": 1, "z": 1}]),
    (TO_BASE, [{"a": 1}]),
    ({**TO_BASE, "properties": {"z": {}}}, [{"z": 1, "a": 1}]),
    (TO_LIST, [[5]]),
    ({"allOf": [TO_LIST, {"contains": {"const": 6}}]}, [[5, 6]]),
    ({"allOf": [{"dependentRequired": {"a": ["b"]}}, {"dependentRequired": {"c": ["b"]}}]}, [{}]),
    ({"allOf": [{"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, {"not": {"required": ["c"]}}]}, [{"a": 1}]),
    ({"allOf": [TO_BASE, TO_MORE], "anyOf": [TO_BASE, TO_MORE]}, [{"a": 1}]),
    ({"anyOf": [TO_BASE, TO_LIST]}, [{"a": 1}, [5]]),
    ({"anyOf": [{"allOf": [TO_BASE, TO_MORE]}, {"type": "null"}]}, [{"a": 1}, None]),
    ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, [{"a": 1}, {"b": 1}]),
    ({"oneOf": [TO_BASE, {"dependentRequired": {"x": ["y"]}, "maxProperties": 0}]}, [{"a": 1}, {}]),
    ({"type": "object", "properties": {"m": {"allOf": [TO_BASE, MORE]}}, "required": ["m"]}, [{"m": {"a": 1}}]),
    ({"items": {"allOf": [TO_BASE, TO_MORE]}, "minItems": 1}, [[{"a": 1}]]),
    ({"type": ["object", "null"], "allOf": [TO_BASE, TO_MORE]}, [None, {"a": 1}]),
    ({"allOf": [TO_MORE, {"type": ["object", "null"]}]}, [None, {"c": "x"}]),
    ({"properties": {"a": {"contains": {}}}, "anyOf": [{"properties": {"a": {"type": "string"}}, "required": ["a"]}]},
     [{"a": "x"}]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "good"), CASES)
@pytest.mark.parametrize("inside", [False, True])
def test_keywords_mean_the_type_that_they_speak_of(schema: dict[str, Any], good: list[Any], inside: bool) -> None:
    whole = {"type": "array", "items": schema, "minItems": 1} if inside else schema
    grammar = matcher_of(prepare_schema({**whole, "$defs": DEFINITIONS}, param="x"))
    others = [value for value in OF_EVERY_TYPE if not any(isinstance(value, type(other)) for other in good)]
    as_it_is = [[value] for value in good] if inside else good
    assert [value for value in as_it_is if not accepts(grammar, value)] == []
    assert [value for value in others if accepts(grammar, [value] if inside else value)] == []


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"contains": {}, "maxContains": 2}, list),
        ({"pattern": "(?<=a(?=b))c"}, str),
        ({"anyOf": [{"minItems": 0}], "unevaluatedItems": False}, list),
    ],
)
def test_what_is_left_out_still_speaks_of_its_type(schema: dict[str, Any], kind: type) -> None:
    grammar = matcher_of(prepare_schema(schema, param="x", relaxing=Relaxing(strict=False)))
    assert all(accepts(grammar, value) is isinstance(value, kind) for value in OF_EVERY_TYPE)
