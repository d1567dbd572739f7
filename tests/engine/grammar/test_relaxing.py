"""Schemas that are not strict: what cannot be followed is left out at its place, is named, and refuses nothing more."""

import json
from functools import cache
from typing import Any

import jsonschema
import llguidance
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.constraint import MAX_POINTER_CHARS, MAX_POINTERS, Constraint, Relaxed, SchemaSource
from engine.grammar.schema.nulls import without_nulls
from engine.grammar.schema.prepare import UnplacedError, prepare_schema
from engine.grammar.schema.relaxing import Degree, Relaxing
from engine.grammar.worker import Answer, Compilers, Job
from tests.engine.grammar.test_grammar import VOCABULARY
from tests.engine.grammar.test_schema import SCHEMAS, accepts, byte_tokenizer, matcher_of


@cache
def compilers() -> Compilers:
    return Compilers(VOCABULARY)


def answer(schema: Any, *, strict: bool = False, rough: bool = False) -> Answer:
    constraint = Constraint(kind="json_schema", source=json.dumps(schema), param="schema", strict=strict)
    return compilers().compile(Job(constraint, "llguidance", rough=rough))


def left_out(schema: Any) -> list[str]:
    """The pointers into a schema that is not strict."""
    found = answer(schema)
    assert found.error is None, found.error
    return [] if found.relaxed is None else [pointer.removeprefix("/schema") for pointer in found.relaxed.pointers]


WORDS = {"type": "string", "pattern": r"^(wo|ma)rd\1$"}
MANY = {f"p{number}": {"type": "null"} for number in range(12)}
ENDLESS = {"multipleOf": 11}
"""What has no complement."""
PLACES: dict[str, tuple[Any, list[str]]] = {
    "nothing": ({"type": "object", "properties": {"a": {"pattern": "^a$"}}}, []),
    "uniqueItems": ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, []),
    "uniqueItems of too few": (
        {"uniqueItems": True, "items": {"properties": {"a": {"type": "null"}}}, "minItems": 3},
        ["/uniqueItems"],
    ),
    "not uniqueItems": ({"items": {"not": {"uniqueItems": True}}}, ["/items/not"]),
    "pattern": ({"items": WORDS}, ["/items/pattern"]),
    "patterns": ({"prefixItems": [WORDS, {"pattern": r"(a)\1"}]}, ["/prefixItems/0/pattern", "/prefixItems/1/pattern"]),
    "format": ({"items": {"format": "regex"}}, ["/items/format"]),
    "unevaluatedItems": ({"prefixItems": [{}], "anyOf": [{"items": {}}, {}], "unevaluatedItems": False},
                         ["/unevaluatedItems"]),
    "unevaluatedProperties": (
        {"oneOf": [{"properties": {"a": {}}}, False], "unevaluatedProperties": False},
        ["/unevaluatedProperties"],
    ),
    "counts": ({"properties": MANY, "minProperties": 2}, []),
    "counts elsewhere": ({"properties": MANY, "allOf": [{"minProperties": 2}]}, []),
    "contains": ({"contains": {"type": "null"}, "maxContains": 1}, ["/maxContains"]),
    "names": ({"propertyNames": {"maxLength": 100, "pattern": "a.*b"}}, []),
    "very long names": ({"propertyNames": {"minLength": 20_000, "pattern": "a"}}, ["/propertyNames"]),
    "lengths of names": ({"propertyNames": {"minLength": 2, "maxLength": 100}}, []),
    "patternProperties": (
        {"properties": {"a~/b": {"patternProperties": {r"(x)\1": {}}, "additionalProperties": False}}},
        ["/properties/a~0~1b/patternProperties"],
    ),
    "another document": ({"properties": {"a": {"$ref": "https://example.com/a"}}}, ["/properties/a/$ref"]),
    "a definition": (
        {"properties": {"a": {"$ref": "#/$defs/w"}, "b": {"$ref": "#/$defs/w"}}, "$defs": {"w": WORDS}},
        ["/$defs/w/pattern"],
    ),
    "not": ({"items": {"type": "number", "not": ENDLESS}}, ["/items/not"]),
    "deep in not": ({"not": {"properties": {"a": {"allOf": [ENDLESS]}}, "required": ["a"]}}, ["/not"]),
    "not of not": ({"not": {"not": {"type": "array", "$dynamicRef": "#i"}}}, ["/not/not/$dynamicRef"]),
    "not of a definition": ({"not": {"$ref": "#/$defs/n"}, "$defs": {"n": ENDLESS}}, ["/not"]),
    "if": ({"if": ENDLESS, "then": {"minimum": 3}, "else": {"maximum": 3}}, ["/if"]),
    "then": ({"if": {"type": "string"}, "then": WORDS}, ["/then/pattern"]),
    "oneOf": ({"oneOf": [{"type": "integer", **ENDLESS}, {"type": "integer", "minimum": 1}]}, ["/oneOf"]),
    "in a oneOf": (
        {"oneOf": [{"type": "integer", **ENDLESS}, {"minimum": 1, "not": ENDLESS}]},
        ["/oneOf/1/not", "/oneOf"],
    ),
    "apart": (
        {"oneOf": [{"type": "null"}, {"type": "array", "$dynamicRef": "#i"}]},
        ["/oneOf/1/$dynamicRef"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_it_is_left_out_at_its_place(place: str) -> None:
    schema, expected = PLACES[place]
    assert sorted(left_out(schema)) == sorted(expected)
    strict = answer(schema, strict=True)
    assert (strict.error is None) == (not expected) and strict.relaxed is None


MALFORMED: dict[str, Any] = {
    "a type that does not exist": {"type": "text"},
    "a number for a pattern": {"items": {"pattern": 3}},
    "no expression": {"properties": {"a": {"pattern": "("}}},
    "no expression beside one": {"properties": {"a": WORDS, "b": {"type": "string", "pattern": "[z-a]"}}},
    "no expression of names": {"patternProperties": {"*": {}}},
    "a list for properties": {"properties": []},
    "in what has no complement": {"not": {"multipleOf": "3"}},
    "a reference to nothing": {"$ref": "#/$defs/a"},
    "nothing is left": False,
    "no value": {"allOf": [{"type": "array", "uniqueItems": True}, {"type": "string"}]},
    "no value, says the library": {"type": "string", "minLength": 3, "maxLength": 2},
    "no value beside what is left out": {"prefixItems": [WORDS, False], "type": "array", "minItems": 2},
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_what_is_no_schema_or_accepts_nothing_is_refused_all_the_same(kind: str) -> None:
    refused = answer(MALFORMED[kind])
    assert refused.error is not None and refused.relaxed is None


def follows(found: Answer, value: Any) -> bool:
    return accepts(llguidance.LLMatcher(byte_tokenizer(), found.grammar, log_level=0), value)


def accepted(schema: Any, value: Any) -> bool:
    relaxing = Relaxing(strict=False)
    return accepts(matcher_of(prepare_schema(schema, param="schema", closes=False, relaxing=relaxing)), value)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"patternProperties": {"^a|b": {}, "^b|a": {"format": "regex"}}, "additionalProperties": False}, {"a": "x"}),
        ({"properties": {"a": {}}, "propertyNames": {"format": "hostname"}}, {"b": 1}),
        ({"not": {"items": {"not": {"multipleOf": 2}}}}, [2]),
        ({"not": {"contains": {"uniqueItems": True}}}, []),
        ({"oneOf": [{"multipleOf": 2}, {"multipleOf": 3}]}, 2),
        ({"if": {"multipleOf": 2}, "then": False}, 3),
        ({"if": {"multipleOf": 2}, "else": False}, 2),
        ({"contains": {"const": 1}, "minContains": 0, "maxContains": 1, "items": {"type": "integer"}}, [2, 3]),
    ],
)
def test_nothing_valid_is_refused_for_what_was_left_out(schema: Any, value: Any) -> None:
    assert jsonschema.Draft202012Validator(schema).is_valid(value) and accepted(schema, value)


UNFOLLOWED = {
    "uniqueItems": True, "multipleOf": 2, "pattern": r"\ba", "format": "regex", "maxContains": 1, "minContains": 2,
    "unevaluatedItems": False, "unevaluatedProperties": False, "patternProperties": {"^a": {}, "a": {"minimum": 1}},
    "propertyNames": {"format": "hostname"},
}  # fmt: skip


@st.composite
def unfollowable(draw: st.DrawFn) -> Any:
    """A schema in which some parts have a keyword more that cannot be followed everywhere."""

    def sown(schema: Any) -> Any:
        if not isinstance(schema, dict):
            return schema
        out = dict(schema)
        for name, value in schema.items():
            if name in ("allOf", "anyOf", "oneOf", "prefixItems"):
                out[name] = [sown(part) for part in value]
            elif name in ("properties", "patternProperties", "dependentSchemas"):
                out[name] = {key: sown(part) for key, part in value.items()}
            elif name not in ("enum", "dependentRequired"):
                out[name] = sown(value)
        if draw(st.booleans()):
            name = draw(st.sampled_from(sorted(UNFOLLOWED)))
            out[name] = UNFOLLOWED[name]
        return out

    return sown(draw(SCHEMAS.filter(lambda schema: isinstance(schema, dict))))


VALUES = [None, True, 1, 0, 2, "", "a", "ab", "b", [], [1], [1, 1], ["a"], {}, {"a": 1}, {"b": "a"}]


@settings(max_examples=400, deadline=None)
@given(schema=unfollowable(), value=st.sampled_from(VALUES), degree=st.sampled_from(list(Degree)))
def test_what_is_valid_is_accepted(schema: Any, value: Any, degree: Degree) -> None:
    """However far a schema is followed; refusals of what nothing satisfies aside."""
    relaxing = Relaxing(strict=False, pattern_fault=lambda pattern: "no words" if r"\b" in pattern else None)
    relaxing.coarsen(max(degree, Degree.PATTERNS))
    validator = jsonschema.Draft202012Validator(schema)
    try:
        grammar = matcher_of(prepare_schema(schema, param="schema", closes=False, relaxing=relaxing))
    except UnplacedError as error:
        assume("no value at all" in error.message)  # or `Fitting` looks for the keyword
        assert not validator.is_valid(value)
        return
    assume(not grammar.is_error())
    if validator.is_valid(value):
        assert accepts(grammar, value), relaxing.pointers()


@settings(max_examples=100, deadline=None)
@given(schema=unfollowable())
def test_every_schema_that_something_satisfies_compiles(schema: Any) -> None:
    found = answer(schema)
    assert found.error is None or any(why in found.error for why in ("no value at all", "Unsatisfiable", "no further"))
    assert found.relaxed is None or len(set(found.relaxed.pointers)) == len(found.relaxed.pointers)


# ---- the whole of it


def test_only_what_is_too_complex_gives_up_more_than_its_place() -> None:
    """Choices that overlap spell out into billions; without complements they do not."""
    choices = [{"properties": {f"p{m}_{n}": {"enum": [n]} for n in range(15)}} for m in range(15)]
    assert left_out({"properties": {"a": {"oneOf": choices}, "b": {"not": {"const": 1}}}}) == [
        "/properties/a/oneOf",
        "/properties/b/not",
    ]


def test_the_outermost_type_is_the_last_resort() -> None:
    found = answer({"type": "object", "properties": {"a": {"type": "integer"}}}, rough=True)
    assert found.relaxed is not None and found.relaxed.pointers == ("/schema",) and found.relaxed.count == 1
    assert follows(found, {"a": "x"}) and not follows(found, [1])
    assert answer({"type": "object"}, strict=True, rough=True).relaxed is None


def test_a_schema_stays_of_the_type_that_what_was_left_out_speaks_of() -> None:
    for schema in ({"pattern": r"(x)\1"}, {"format": "regex"}):
        assert follows(answer(schema), "y") and not follows(answer(schema), 1)


def test_each_schema_beside_others_is_strict_or_not() -> None:
    def tools(*strict: bool) -> Constraint:
        schemas = tuple(
            SchemaSource(param=f"tools[{n}].function.parameters", schema=json.dumps({"items": WORDS}), strict=is_strict)
            for n, is_strict in enumerate(strict)
        )
        return Constraint(kind="lark", source='start: schema_0 "," schema_1', param="tools", schemas=schemas)

    free = compilers().compile(Job(tools(False, False), "llguidance"))
    assert free.relaxed is not None
    assert free.relaxed.pointers == tuple(f"/tools/{n}/function/parameters/items/pattern" for n in range(2))
    mixed = compilers().compile(Job(tools(False, True), "llguidance"))
    assert mixed.relaxed is None and mixed.error_param == "tools[1].function.parameters"
    assert "at /items/pattern: 'pattern'" in (mixed.error or "")


def test_of_very_many_the_first_are_named_and_all_counted() -> None:
    some = {"type": "array", "$dynamicRef": "#i"}
    found = answer({"properties": {f"p{number}": some for number in range(3 * MAX_POINTERS)}})
    assert found.relaxed is not None and found.relaxed.count == 3 * MAX_POINTERS
    assert len(found.relaxed.pointers) == MAX_POINTERS
    assert Relaxed.of(["/a", "/" + "p" * MAX_POINTER_CHARS, "/b"]) == Relaxed(3, ("/a",))


# ---- null


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "name", ["type", "properties", "required", "enum", "items", "pattern", "not", "$ref", "oneOf", "format", "minimum",
             "uniqueItems", "additionalProperties", "description", "title", "default", "$id", "$defs", "if"]
)  # fmt: skip
def test_a_keyword_that_is_null_counts_as_absent(name: str, strict: bool) -> None:
    for schema in ({"maxLength": 3}, {"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}}}):
        if name not in schema:
            assert answer({**schema, name: None}, strict=strict) == answer(schema, strict=strict)
    inner = {"type": "object", "properties": {"a": {"type": "string"}}}
    nulled = {"type": "object", "properties": {"a": {"type": "string", name: None} | {"type": "string"}}}
    assert answer(nulled, strict=strict) == answer(inner, strict=strict)


def test_so_it_does_for_the_other_backend() -> None:
    def index(schema: Any) -> bytes:
        constraint = Constraint(kind="json_schema", source=json.dumps(schema), strict=False)
        found = compilers().compile(Job(constraint, "outlines_core"))
        assert found.error is None, found.error
        return found.index

    plain = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    nulls = {"enum": None, "items": None, "pattern": None}
    assert index({**plain, **nulls, "properties": {"a": {**nulls, "type": "integer"}}}) == index(plain)


def test_null_is_a_value_and_a_member_may_have_any_name() -> None:
    schema = {"const": None, "properties": {"type": {"enum": [None]}, "const": {"default": {"a": None}}}}
    assert without_nulls({**schema, "items": None}) == schema
    assert "at /properties/a" in (answer({"properties": {"a": None}}).error or "")
