"""What schemas leave open is closed for generation, and nothing that comes out is invalid for it."""

from typing import Any

import jsonschema
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.errors import RequestError
from engine.grammar.schema.closing import Closing
from engine.grammar.schema.prepare import prepare_schema
from tests.engine.grammar.test_schema import SCHEMAS, VALUES, accepts, matcher_of, takes

A, B = {"type": "integer"}, {"type": "string"}
LISTED = {"properties": {"a": A}}
CASES: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "properties": ({"type": "object", **LISTED}, [{}, {"a": 1}], [{"x": 1}, {"a": 1, "x": 1}]),
    "open on purpose": ({**LISTED, "additionalProperties": True}, [{"a": 1, "x": 2}], []),
    "others by a schema": ({**LISTED, "additionalProperties": B}, [{"a": 1, "x": "y"}], [{"x": 2}]),
    "others by a pattern": ({**LISTED, "patternProperties": {"^x": B}}, [{"xx": "y"}, {"q": 3}], [{"xx": 2}]),
    "no properties at all": ({"type": "object", "properties": {}}, [{}], [{"x": 1}]),
    "any object": ({"type": "object"}, [{}, {"x": 1}], []),
    "required and not listed": ({**LISTED, "required": ["b"]}, [{"a": 1, "b": []}, {"b": 1}],
                                [{"a": 1}, {"b": 1, "c": 1}]),
    "inside": ({"type": "array", "items": LISTED}, [[{"a": 1}]], [[{"x": 1}], [3]]),
    "in two parts": ({"allOf": [LISTED, {"properties": {"b": B}}]}, [{"a": 1, "b": "x"}], [{"c": 1}]),
    "in choices": ({**LISTED, "anyOf": [{"required": ["a"]}, {"properties": {"b": B}, "required": ["b"]}]},
                   [{"a": 1}, {"b": "x"}, {"a": 1, "b": "x"}], [{"a": 1, "c": 1}]),
    "a definition": ({"$ref": "#/$defs/n", "$defs": {"n": {"properties": {"n": {"$ref": "#/$defs/n"}}}}},
                     [{"n": {"n": {}}}], [{"x": 1}, {"n": {"x": 1}}, {"n": 3}]),
    "a definition in a part": ({"allOf": [{"$ref": "#/$defs/n"}, {"properties": {"b": B}}], "$defs": {"n": LISTED}},
                               [{"a": 1, "b": "x"}], [{"c": 1}]),
    "more members than are listed": ({**LISTED, "minProperties": 2}, [{"a": 1, "x": 1}], [{"a": 1}]),
    "means an array": ({"items": A}, [[1]], ["x", {}]),
    "means text": ({"maxLength": 3}, ["x"], [1, []]),
    "means a number": ({"minimum": 3}, [4], ["x", 2]),
    "means either": ({"minimum": 3, "minLength": 1}, [4, "x"], [[], ""]),
    "says what it means": ({"type": ["string", "null"], "anyOf": [{"pattern": "^a"}, {"maxLength": 0}]},
                           ["a", None], ["b"]),
    "a member of a base and of what is based on it": (
        {"allOf": [{"$ref": "#/$defs/base"}, {"properties": {"m": {"properties": {"n": B}, "required": ["n"]}}}],
         "$defs": {"base": {"type": "object", "required": ["m"],
                            "properties": {"m": {"type": "object", "properties": {"i": A}, "required": ["i"]}}}}},
        [{"m": {"i": 1, "n": "x"}}], [{"m": {"i": 1}}, {"m": {"i": 1, "n": "x"}, "z": 1}]),
    "a member that a condition speaks of": (
        {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}, "data": {"properties": {"i": A}}},
         "required": ["kind", "data"],
         "if": {"properties": {"kind": {"const": "a"}}},
         "then": {"properties": {"data": {"properties": {"x": B}, "required": ["x"]}}}},
        [{"kind": "a", "data": {"i": 1, "x": "y"}}, {"kind": "b", "data": {}}], [{"kind": "a", "data": {}}]),
    "items of which two speak": (
        {"items": {"properties": {"i": A}}, "anyOf": [{"items": {"required": ["n"]}}, {"maxItems": 0}]},
        [[{"i": 1, "n": 2}], []], [[{"i": 1}]]),
    "a type in a choice": (
        {"properties": {"a": {"minimum": 2}}, "anyOf": [{"properties": {"a": {"type": "string"}}, "required": ["a"]}]},
        [{"a": "x"}], [{"a": 3}]),
    "one member at least": ({"properties": {"k": {}, "m": {}}, "minProperties": 1},
                            [{"k": 1}, {"m": 1}], [{"z": 1}, {}]),
    "a name that cannot be": ({"type": ["object", "null"], "propertyNames": {"maxLength": 3}, "required": ["abcd"]},
                              [None], [{"abcd": 1}]),
    "a choice that is not to be had": ({"oneOf": [{"required": ["a"], "properties": {"a": False}}, {"type": "string"}]},
                                       [], ["x"]),
    "members that are counted": ({"type": "object", "maxProperties": 3, "propertyNames": {"pattern": "^[0-9]$"}},
                                 [{"1": 1, "2": 2}], [{"a": 1}, {"1": 1, "2": 1, "3": 1, "4": 1}]),
    "values": ({"enum": [1, {"x": 1}], "minimum": 0}, [1, {"x": 1}], [2]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_closed_and_what_is_not(case: str) -> None:
    schema, good, bad = CASES[case]
    grammar = matcher_of(prepare_schema(schema, param="x"))
    assert [value for value in good if not accepts(grammar, value)] == []
    assert [value for value in bad if accepts(grammar, value)] == []


def test_too_few_names_are_said() -> None:
    schema = {"patternProperties": {"^[ab]$": A}, "additionalProperties": False, "minProperties": 3}
    with pytest.raises(RequestError, match="accepts no value at all"):
        prepare_schema(schema, param="x")


@given(schema=SCHEMAS.filter(lambda schema: isinstance(schema, dict)), values=st.lists(VALUES, min_size=1, max_size=8))
def test_what_is_closed_accepts_nothing_more(schema: Any, values: list[Any]) -> None:
    try:
        written = prepare_schema(schema, param="x")
    except RequestError:
        assume(False)
    grammar = matcher_of(written)
    assume(not grammar.is_error())
    for value in values:
        assert not takes(written, grammar, value) or jsonschema.Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize("is_left", [False, True])
def test_what_schemas_share_is_closed_once(is_left: bool) -> None:
    """Written out, what twenty levels share is a million schemas."""
    shared: dict[str, Any] = {"type": frozenset({"object"}), "properties": {"a": {"$ref": "#/$defs/n"}}}
    for _ in range(20):
        shared = {"type": frozenset({"object"}), "properties": {"a": shared, "b": shared}}
    root = {"allOf": [shared, {"properties": {"a": {"minimum": 0}}}]} if is_left else shared
    closed, definitions = Closing({"n": {}}).document(root)
    level = closed["allOf"][0] if is_left else closed
    for _ in range(20):
        assert level["properties"]["a"] is level["properties"]["b"]
        assert ("additionalProperties" in level) is not is_left
        level = level["properties"]["a"]
    assert level["properties"]["a"]["$ref"].rpartition("/")[2] in definitions
