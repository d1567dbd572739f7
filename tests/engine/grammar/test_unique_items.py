"""Items differ where `uniqueItems` wants it, by JSON's equality, and no array leads where only equal ones are left."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.constraint import SchemaSource
from engine.errors import RequestError
from engine.grammar.grammar import GrammarError
from engine.grammar.repeats import UnrepeatedGrammar
from tests.engine.grammar.test_repeats import allowed, compiled, feed
from tests.engine.grammar.test_schema import SCHEMAS, VALUES
from tests.engine.grammar.test_walks import walk_through
from tests.engine.grammar.walks import Walker, exactly


def unique(**fields: Any) -> dict[str, Any]:
    return {"type": "array", "uniqueItems": True, **fields}


def closed(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required or [], "additionalProperties": False}


DIGIT = {"type": "integer", "minimum": 0, "maximum": 1}
ANY = unique()


def takes(schema: Any, text: str) -> bool:
    """Whether an answer may be this text."""
    try:
        return feed(compiled(schema), text).can_end
    except GrammarError:
        return False


@pytest.mark.parametrize(
    ("items", "is_taken"),
    [
        ("1, 1", False), ("1, 1.0", False), ("1, 1e0, 2", False), ("0, -0", False), ("1, 10e-1", False), ("1, 2", True),
        ("1.5, 1.50", False), ("1, true", True), ("true, false, true", False), ("null, null", False),
        ("0, false", True), ('"a", "a"', False), ('"a", "b"', True), ('"1", 1', True), ('"true", true', True),
        ('"é", "é"', False), (r'"\"", "\""', False), (r'"\\", "\""', True), ("[], []", False),
        ("[1], [1, 1.0]", True), ("[[]], [[]]", False), ("[1, 2], [2, 1]", True),
        ("[1, 2], [1.0, 2]", False), ("{}, {}", False), ("{}, []", True),
        ('{"a": 1, "b": 2}, {"b": 2.0, "a": 1}', False), ('{"a": 1}, {"a": 2}', True), ('{"a": 1}, {"b": 1}', True),
        ('{"a": [1, {}]}, {"a":[1,{ }] }', False), ('{"a": 1}, {"a": 1, "b": 1}', True), ("1 , 1", False),
    ],
)  # fmt: skip
def test_equal_is_what_json_schema_calls_equal(items: str, is_taken: bool) -> None:
    assert takes(ANY, f"[{items}]") == is_taken
    assert takes(ANY, f'[{{"x": [7, {items}]}}, {items}]') == is_taken
    assert takes({"items": ANY, "minItems": 2}, f"[[{items}], [{items}]]") == is_taken


def test_other_arrays_may_hold_equal_items() -> None:
    schema = closed(["u", "n"], u=ANY, n={"type": "array"})
    assert takes(schema, '{"u": [1, [1, 2]], "n": [1, 1, ["a", "a"]]}')
    assert not takes(schema, '{"u": [1, [1, 1]], "n": [], "u": [1, 1]}')
    assert takes(unique(items={"type": "array"}), "[[1, 1], [1]]")
    assert not takes(unique(items={"type": "array"}), "[[1, 1], [1, 1]]")


def test_a_choice_that_wants_no_difference_may_have_none() -> None:
    either = {"anyOf": [unique(items={"type": "string"}), {"type": "array", "items": {"type": "integer"}}]}
    assert takes(either, "[1, 1]") and takes(either, '["a", "b"]') and not takes(either, '["a", "a"]')
    told = {"anyOf": [closed(["k", "v"], k={"const": 1}, v=ANY), closed(["k", "v"], k={"const": 2}, v={"items": {}})]}
    assert takes(told, '{"k": 2, "v": [1, 1]}') and not takes(told, '{"k": 1, "v": [1, 1]}')


def test_tokens_that_would_complete_an_equal_item() -> None:
    grammar = feed(compiled(unique(items={"type": "string"})), '["ab", "')
    assert b'a"' in allowed(grammar) and b"a" in allowed(grammar)
    feed(grammar, "a")
    assert b'b"}' not in allowed(grammar) and b"b" in allowed(grammar) and b'"' in allowed(grammar)
    feed(grammar, "b")
    assert not any(text.startswith(b'"') for text in allowed(grammar)) and b"c" in allowed(grammar)
    named = feed(compiled(unique(items=closed(["ab"], ab={"type": "integer"}))), '[{"ab":1},{"ab":1')
    assert b"}" not in allowed(named) and b"1" in allowed(named)


def test_the_mark_that_grammars_are_asked_by_is_never_written() -> None:
    for text in ("[", "[1", "[1, 2", '["a"', '["a', '[{"a": 1}'):
        assert not any(b"\x01" in token for token in allowed(feed(compiled(ANY), text)))


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (unique(items={"type": "boolean"}), "[true, false"),
        (unique(items=DIGIT), "[1, 0"),
        (unique(items={"enum": ["a", 1, [1], {"b": 1.0}]}), '[1, "a", {"b": 1}, [1]'),
        (unique(items=closed(a=DIGIT)), '[{}, {"a": 1}, {"a": 0}'),
        (unique(items={"type": "array", "items": DIGIT, "maxItems": 1}), "[[], [1], [0]"),
        (unique(items={"type": "string", "pattern": "^[ab]$"}), '["b", "a"'),
        (unique(prefixItems=[{"const": 1}], items=DIGIT), "[1, 0"),
        (unique(items={"type": "number", "minimum": 2, "maximum": 2}), "[2"),
    ],
)  # fmt: skip
def test_no_comma_comes_where_no_item_is_left(schema: Any, text: str) -> None:
    tokens = allowed(feed(compiled(schema), text))
    assert b"]" in tokens and b"," not in tokens


@pytest.mark.parametrize(
    "schema",
    [
        unique(items={"type": "boolean"}, minItems=3), unique(items=DIGIT, minItems=3),
        unique(items={"enum": [1, 1.0, "a"]}, minItems=3), unique(items=closed(a=DIGIT), minItems=4),
        unique(prefixItems=[{"const": 1}, {"const": 1.0}], minItems=2),
        unique(items={"type": "string", "maxLength": 0}, minItems=2),
    ],
)  # fmt: skip
def test_more_items_than_values_are_refused(schema: Any) -> None:
    with pytest.raises(RequestError, match=r"accepts no value at all|'uniqueItems' beside 'minItems'"):
        compiled(schema)


CORNERS: dict[str, Any] = {
    "integers": unique(items={"type": "integer"}, minItems=12),
    "digits": unique(items={"type": "integer", "minimum": 0, "maximum": 3}, minItems=4),
    "all of a range": unique(items={"type": "integer", "minimum": -2, "maximum": 21}, minItems=24),
    "words that begin alike": unique(items={"enum": ["a", "ab", "c", "abc", "", "b"]}, minItems=6),
    "values of all kinds": unique(items={"enum": ["a", 1, 1.5, 1.5e3, True, None, [1], {"a": 1}, "true"]}, minItems=9),
    "booleans": unique(items={"type": "boolean"}, minItems=2),
    "texts": unique(items={"type": "string"}, minItems=6),
    "short texts": unique(items={"type": "string", "pattern": "^[ab]{0,2}$"}, minItems=7),
    "a pattern with an end": unique(items={"type": "string", "pattern": "^(a|b+)$"}, minItems=6),
    "a length": unique(items={"type": "string", "pattern": "^[xy]+$", "maxLength": 3}, minItems=14),
    "numbers between": unique(items={"type": "number", "minimum": 0, "maximum": 0.5}, minItems=8),
    "multiples": unique(items={"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.25}, minItems=5),
    "steps": unique(items={"type": "integer", "minimum": 0, "maximum": 60, "multipleOf": 7}, minItems=9),
    "anything": unique(minItems=6),
    "all objects": unique(items=closed(a=DIGIT, b={"type": "boolean"}), minItems=9),
    "a text between": unique(
        items=closed(["k", "n"], k={"enum": ["x", "y"]}, n={"type": "string"}, o={"type": "boolean"}), minItems=6
    ),
    "named alike": unique(items=closed(flag={"type": "null"}, flat={"type": "null"}, fl={"type": "null"}), minItems=8),
    "names of any kind": unique(items={"type": "object", "additionalProperties": {"type": "null"}}, minItems=5),
    "all arrays": unique(items={"type": "array", "items": {"type": "boolean"}, "maxItems": 2}, minItems=7),
    "unique within unique": unique(items=unique(items={"type": "boolean"}), minItems=4),
    "either": {"anyOf": [unique(items={"type": "string"}, minItems=3), {"items": {"const": 1}, "minItems": 3}]},
    "beginning alike": {"anyOf": [unique(items={"enum": ["a", "b"]}, minItems=2), {"items": {"const": "a"}}]},
    "each place": unique(prefixItems=[{"const": "a"}, {"enum": ["a", "b"]}], items={"enum": [*"abcd"]}, minItems=4),
    "side by side": closed(["u", "n"], u=unique(items=DIGIT, minItems=2), n={"items": {"const": 0}, "minItems": 3}),
    "itself": {"$ref": "#/$defs/t", "$defs": {"t": closed(["n"], n=unique(items={"$ref": "#/$defs/t"}, maxItems=2))}},
}  # fmt: skip


@pytest.fixture(scope="module")
def walker(smollm2_dir: Path) -> Walker:
    return Walker(smollm2_dir, 49152, 2)


@pytest.mark.parametrize("corner", CORNERS)
def test_no_way_leads_where_all_that_is_left_is_there_already(walker: Walker, corner: str) -> None:
    schema = CORNERS[corner]
    validator = jsonschema.Draft202012Validator(exactly(json.dumps(schema)))
    for seed in range(8):
        validator.validate(walker.value(schema, seed, limit=600))


def made_unique(schema: Any) -> Any:
    """The schema with `uniqueItems` wherever it speaks of arrays."""
    if isinstance(schema, list):
        return [made_unique(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {name: part if name == "enum" else made_unique(part) for name, part in schema.items()}
    speaks = parts.keys() & {"items", "prefixItems", "minItems", "maxItems"}
    return {**parts, "uniqueItems": True} if speaks else parts


@settings(max_examples=120)
@given(schema=SCHEMAS, seed=st.integers(0, 1000))
def test_walks_through_made_up_schemas(walker: Walker, schema: Any, seed: int) -> None:
    made = made_unique(schema)
    if made == schema:  # it speaks of no array
        made = unique(items=schema, maxItems=4)
    walk_through(walker, made, range(seed, seed + 2), Counter())


@settings(max_examples=200)
@given(items=st.lists(VALUES | st.integers(0, 3), max_size=5))
def test_an_array_is_taken_if_its_items_differ(items: list[Any]) -> None:
    is_valid = jsonschema.Draft202012Validator(ANY).is_valid(items)
    assert takes(ANY, json.dumps(items)) == is_valid
    assert takes(unique(items=ANY), json.dumps([items])) == is_valid


def test_in_free_text_only_values_are_followed() -> None:
    source = 'start: TEXT "<call>f: " schema_0 "</call>" TEXT\nTEXT: /[^<]*/'
    schemas = (SchemaSource(param="tools[0]", schema=json.dumps(closed(["a"], a=unique(items={"type": "string"})))),)
    grammar = compiled(source, schemas=schemas, opens="<call>f: ")
    feed(grammar, 'He said ["a", "a"] <call>f: {"a": ["a", "a')
    assert b'"' not in allowed(grammar) and b"b" in allowed(grammar)
    feed(grammar, 'b"]}</call>["a", "a')
    assert b'"' in allowed(grammar)


def test_only_schemas_that_want_it_are_followed() -> None:
    assert not isinstance(compiled(closed(a={"type": "array", "items": {"type": "string"}})), UnrepeatedGrammar)
    assert not isinstance(compiled(unique(items={"type": "string"}, maxItems=1)), UnrepeatedGrammar)
    assert isinstance(compiled(unique(items={"type": "string"})), UnrepeatedGrammar)
