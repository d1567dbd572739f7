"""Rewritten schemas: nothing is accepted that jsonschema refuses, and what cannot be followed is named."""

import contextlib
import gzip
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import jsonschema
import llguidance
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.errors import RequestError
from engine.grammar.schema.prepare import prepare_schema
from engine.grammar.writing.document import WrittenSchema
from tests.clocks import assert_linear
from tests.engine.grammar.walks import repeats_nothing
from tests.places import SHARED

DATA = SHARED / "data" / "json-schemas.jsonl.gz"
MIN_FOLLOWED = 1149
"""Of 1,200. The others are refused by name, or follow the schema's order of properties where an instance does not."""


@cache
def byte_tokenizer() -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer("byte")


def matcher(schema: Any) -> llguidance.LLMatcher:
    """Of all that the schema accepts, not only of what generation is held to."""
    return matcher_of(prepare_schema(schema, param="schema", closes=False))


def matcher_of(written: WrittenSchema) -> llguidance.LLMatcher:
    grammar = llguidance.LLMatcher.grammar_from_lark(written.text)
    return llguidance.LLMatcher(byte_tokenizer(), grammar, log_level=0)


def accepts(grammar: llguidance.LLMatcher, value: Any) -> bool:
    text = json.dumps(value, ensure_ascii=False).encode()
    copy = grammar.deep_copy()
    return bool(copy.try_consume_tokens(list(text)) == len(text) and copy.is_accepting())


def takes(written: WrittenSchema, grammar: llguidance.LLMatcher, value: Any) -> bool:
    """`accepts`, by what follows the text beside the grammar too."""
    return accepts(grammar, value) and (written.items == "any" or repeats_nothing(written, value))


@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data/json-schemas.jsonl.gz")
def test_schemas_of_the_wild() -> None:
    followed = 0
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        for line in lines:
            case = json.loads(line)
            try:
                written = prepare_schema(case["schema"], param="schema", closes=False)
            except RequestError as error:
                assert "'" in error.message or "no value at all" in error.message or "choice" in error.message
                continue
            grammar = matcher_of(written)
            if grammar.is_error():
                continue
            outcomes = [(test["valid"], takes(written, grammar, test["data"])) for test in case["tests"]]
            assert (False, True) not in outcomes, case["name"]
            followed += (True, False) not in outcomes
    assert followed >= MIN_FOLLOWED


VALUES = st.recursive(
    st.sampled_from([None, True, False, 0, 1, 2, -1, 1.5, "", "a", "b", "ab", "2020-01-01"]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=2)
    ),
    max_leaves=4,
)
NAMES = st.sampled_from(["a", "b"])
NAMINGS = [{"pattern": "^a"}, {"pattern": "^(?!a)"}, {"maxLength": 1}, {"not": {"const": "a"}}]
PATTERNS = ["^a", "b$", "^[ab]+$", "^$", "^(?!a)", "(?<!b)$", r"a(?=b)|\bb"]
TYPES = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])


def _with(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keywords = {
        "properties": st.dictionaries(NAMES, inner, max_size=2),
        "required": st.lists(NAMES, unique=True, max_size=2),
        "additionalProperties": inner,
        "patternProperties": st.dictionaries(st.sampled_from(["^a", "b$", "a|c"]), inner, max_size=2),
        "propertyNames": st.sampled_from(NAMINGS),
        "minProperties": st.integers(0, 2), "maxProperties": st.integers(0, 2),
        "items": inner, "prefixItems": st.lists(inner, min_size=1, max_size=2), "contains": inner,
        "minItems": st.integers(0, 2), "maxItems": st.integers(0, 3), "uniqueItems": st.booleans(),
        "allOf": st.lists(inner, min_size=1, max_size=2), "anyOf": st.lists(inner, min_size=1, max_size=2),
        "oneOf": st.lists(inner, min_size=1, max_size=3), "not": inner,
        "if": inner, "then": inner, "else": inner,
        "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, unique=True, max_size=1), max_size=1),
        "dependentSchemas": st.dictionaries(NAMES, inner, max_size=1),
    }  # fmt: skip
    return st.fixed_dictionaries({}, optional=keywords).map(lambda found: dict(list(found.items())[:3]))


SCALARS = st.fixed_dictionaries(
    {},
    optional={
        "type": TYPES | st.lists(TYPES, min_size=1, max_size=3, unique=True),
        "enum": st.lists(VALUES, min_size=1, max_size=3),
        "minimum": st.integers(0, 2), "exclusiveMaximum": st.integers(0, 2), "minLength": st.integers(0, 2),
        "maxLength": st.integers(0, 2), "pattern": st.sampled_from(PATTERNS),
    },
).map(lambda found: dict(list(found.items())[:2]))  # fmt: skip
SCHEMAS = st.recursive(st.booleans() | SCALARS, _with, max_leaves=5)


@settings(max_examples=400, deadline=None)
@given(schema=SCHEMAS.filter(lambda schema: isinstance(schema, dict)), values=st.lists(VALUES, min_size=1, max_size=8))
def test_nothing_invalid_is_accepted(schema: Any, values: list[Any]) -> None:
    try:
        written = prepare_schema(schema, param="schema", closes=False)
    except RequestError:
        assume(False)
    grammar = matcher_of(written)
    assume(not grammar.is_error())
    validator = jsonschema.Draft202012Validator(schema)
    for value in values:
        if takes(written, grammar, value):
            assert validator.is_valid(value), written.text


@settings(max_examples=400, deadline=None)
@given(schema=SCHEMAS, value=st.sampled_from([None, True, 1, 0, 2, "", "a", "ab", "b", [], [1], ["a"], {}, {"a": 1}]))
def test_what_is_valid_is_accepted(schema: Any, value: Any) -> None:
    """Of values that are not subject to the order of properties; refused schemas aside."""
    try:
        grammar = matcher(schema)
    except RequestError as error:
        if "no value at all" in error.message:
            assert not jsonschema.Draft202012Validator(schema).is_valid(value)
        return
    if not grammar.is_error() and jsonschema.Draft202012Validator(schema).is_valid(value):
        assert accepts(grammar, value), prepare_schema(schema, param="schema", closes=False).text


@pytest.mark.parametrize(
    ("schema", "good"),
    [
        ({"oneOf": [{"not": {"required": ["a"]}}, {"properties": {"a": False}}]}, [1, "a", []]),
        ({"properties": {"a": False}, "required": ["a"]}, [1, "a", [], None]),
        ({"allOf": [{"properties": {"a": False}}, {"required": ["a"]}, {"enum": [{"a": 1}, 2]}]}, [2]),
        ({"type": ["object", "string"], "properties": {"a": False}, "required": ["a"]}, ["a"]),
    ],
)
def test_what_no_object_satisfies_other_values_may(schema: Any, good: list[Any]) -> None:
    grammar = matcher(schema)
    for value in [1, 2, "a", [], None, {}, {"a": 1}]:
        assert accepts(grammar, value) == jsonschema.Draft202012Validator(schema).is_valid(value), value
    assert all(accepts(grammar, value) for value in good)


REFUSED = {
    "/not/multipleOf": {"not": {"multipleOf": 11}},
    "/unevaluatedItems": {"anyOf": [{"items": {}}, {}], "unevaluatedItems": False},
    "/items/format": {"items": {"format": "regex"}},
    "/allOf/0/not/patternProperties": {"allOf": [{"not": {"patternProperties": {"x": {"type": "string"}}}}]},
    "/$defs/a~1b/maxContains": {
        "$ref": "#/$defs/a~1b",
        "$defs": {"a/b": {"contains": {"type": "null"}, "maxContains": 1}},
    },
    "/properties/x/type": {"properties": {"x": {"type": "text"}}},
    "/minLength": {"minLength": -1},
    "/pattern": {"pattern": 3},
    "/multipleOf": {"multipleOf": 0},
    "/$ref": {"$ref": "https://example.com/schema.json"},
    "/anyOf/1": {"anyOf": [{}, 3]},
    "/properties": {"properties": []},
}


@pytest.mark.parametrize("pointer", REFUSED)
def test_refusals_name_keyword_and_pointer(pointer: str) -> None:
    with pytest.raises(RequestError) as caught:
        prepare_schema(REFUSED[pointer], param="response_format.value")
    assert caught.value.message.startswith(f"response_format.value at {pointer}: ")
    assert caught.value.param == "response_format.value"


def nested(depth: int) -> Any:
    schema: Any = {"type": "null"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def tangled(count: int) -> Any:
    """References that fan out: each definition is made of two complements of the next."""
    definitions = {
        f"d{n}": {"oneOf": [{"items": {"$ref": f"#/$defs/d{n + 1}"}}, {"contains": {"$ref": f"#/$defs/d{n + 1}"}}]}
        for n in range(count)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{count}": {"type": "null"}}}


def overlapping(count: int) -> Any:
    """Objects of which each could be every other."""
    return {"oneOf": [{"properties": {f"p{m}_{n}": {"enum": [n]} for n in range(count)}} for m in range(count)]}


def prepare(schema: Any) -> None:
    """Rewrite a schema, or refuse it."""
    with contextlib.suppress(RequestError):
        prepare_schema(schema, param="schema")


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (nested, 5000), (tangled, 40), (overlapping, 15),
        (lambda count: {"anyOf": [{"minimum": n} for n in range(count)]}, 8000),
        (lambda count: {"enum": [f"value {n}" for n in range(count)]}, 2500),
    ],
    ids=["nested", "tangled", "overlaps", "many", "listed"],
)  # fmt: skip
def test_explosive_schemas_take_no_more_time_than_long_ones(make: Callable[[int], Any], size: int) -> None:
    def work(size: int) -> Callable[[], None]:
        schema = make(size)
        return lambda: prepare(schema)

    assert_linear(work, size)


@pytest.mark.parametrize(
    "schema", [{"$ref": "#"}, {"allOf": [{"$ref": "#"}]}, {"not": {"$ref": "#"}}], ids=["itself", "allOf", "not"]
)
def test_schemas_that_are_parts_of_themselves_come_to_an_end(schema: Any) -> None:
    prepare(schema)


def test_answers_that_wander_in_white_space_end() -> None:
    grammar = matcher({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]})
    assert grammar.deep_copy().try_consume_tokens(list(b'{\n    "a": null\n}')) > 16
    assert grammar.try_consume_tokens(list(b"{" + b" " * 9)) == 2
