"""Wherever a model goes within a constraint, it comes to an end, and what it has written by then is valid."""

import gzip
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import RequestError
from engine.grammar.grammar import GrammarError
from tests.engine.grammar.test_schema import DATA, SCHEMAS
from tests.engine.grammar.walks import Walker, exactly

SPELT = "<|im_end|>"


@pytest.fixture(scope="module")
def walker(smollm2_dir: Path) -> Walker:
    return Walker(smollm2_dir, 49152, 2)


def closed(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, **fields}


INTEGER = {"type": "integer"}
CORNERS: dict[str, Any] = {
    "a pattern for a declared name": closed(properties={"g": INTEGER}, patternProperties={"^g$": INTEGER}),
    "a required name of a pattern": closed(required=["g"], patternProperties={"^g$": INTEGER}),
    "names that are listed": {
        "type": "object",
        "properties": {"a": INTEGER, "b": {}},
        "propertyNames": {"enum": ["a"]},
    },
    "one name": {"type": "object", "propertyNames": {"const": "only"}, "minProperties": 1},
    "alternatives in a pattern": closed(patternProperties={"^(ab|cd|e[fg])$": INTEGER}, minProperties=2),
    "patterns that overlap": closed(patternProperties={"^[ab]$": INTEGER, "^[bc]$": {"minimum": 3}}),
    "a pattern that forbids": {"type": "object", "patternProperties": {"^a$": False}, "properties": {"b": INTEGER}},
    "a control token's spelling for a name": closed(properties={"ok": INTEGER, SPELT: INTEGER}, required=["ok", SPELT]),
    "a control token's spelling for a value": closed(properties={"stop": {"const": SPELT}}, required=["stop"]),
    "a control token's spelling in a text": {"const": f"say {SPELT} now"},
    "a control token's spelling by a pattern": {"type": "string", "pattern": r"^<\|im_end\|>$"},
    "members that are counted": closed(
        properties={name: INTEGER for name in "abcdefgh"}, required=["c", "f"], minProperties=4, maxProperties=5
    ),
    "others that are counted": {
        "type": "object",
        "properties": {"a": INTEGER, "b": INTEGER},
        "minProperties": 4,
        "maxProperties": 5,
        "additionalProperties": {"type": "null"},
    },
    "any names": {"type": "object", "minProperties": 5, "additionalProperties": {"type": ["object", "null"]}},
    "a number between": {
        "type": "array",
        "items": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
        "minItems": 5,
    },
    "int64 and uint64": {
        "type": "array",
        "minItems": 4,
        "items": {
            "anyOf": [
                {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
                {"const": 2**64 - 1},
                {"const": 1234567890123456789},
            ]
        },
    },
    "multiples": {"type": "array", "minItems": 4, "items": {"type": "number", "multipleOf": 0.25, "maximum": 100}},
    "dates": {"type": "array", "items": {"type": "string", "format": "date"}, "minItems": 3},
    "times": {"type": "array", "items": {"type": "string", "format": "date-time"}, "minItems": 3},
}


@pytest.mark.parametrize("corner", CORNERS)
def test_no_way_leads_into_a_corner(walker: Walker, corner: str) -> None:
    schema = CORNERS[corner]
    exact = exactly(json.dumps(schema))
    validator = jsonschema.Draft202012Validator(exact, format_checker=jsonschema.FormatChecker())
    for seed in range(25):
        validator.validate(walker.value(schema, seed))


@pytest.mark.parametrize(
    ("kind", "source", "expected"),
    [("regex", r"(<\|im_end\|>)+x", SPELT), ("lark", f'start: "{SPELT}" "a"', f"{SPELT}a")],
)
def test_what_spells_a_control_token_is_made_of_other_tokens(
    walker: Walker, kind: str, source: str, expected: str
) -> None:
    for seed in range(5):
        text = walker.walk(kind, source, seed)
        assert text is not None and text.decode().startswith(expected)


def walk_through(walker: Walker, schema: Any, seeds: range, outcomes: Counter[str]) -> None:
    """Walk; a dead end raises, what comes out must be valid."""
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    validator = kind(exactly(json.dumps(schema)))
    for seed in seeds:
        try:
            value = walker.value(schema, seed)
        except RequestError:
            outcomes["refused"] += 1
            return
        except TimeoutError as error:
            outcomes[type(error).__name__] += 1
            continue
        except GrammarError as error:
            assert "too complex" in str(error), (schema, seed)
            outcomes["too complex"] += 1
            return
        outcomes["valid"] += 1
        assert validator.is_valid(value), (schema, value)


@settings(max_examples=150)
@given(schema=SCHEMAS.filter(lambda schema: isinstance(schema, dict)), seed=st.integers(0, 1000))
def test_made_up_schemas(walker: Walker, schema: Any, seed: int) -> None:
    walk_through(walker, schema, range(seed, seed + 2), Counter())


def walk_the_wild(walker: Walker, every: int, times: int) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        for line in itertools.islice(lines, None, None, every):
            walk_through(walker, json.loads(line)["schema"], range(times), outcomes)
    return outcomes


@pytest.mark.filterwarnings("ignore:Possible:FutureWarning")
@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data/json-schemas.jsonl.gz")
def test_schemas_of_the_wild(walker: Walker) -> None:
    outcomes = walk_the_wild(walker, every=10, times=1)
    assert outcomes["valid"] > 100, outcomes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Possible:FutureWarning")  # how Python reads a pattern of the wild
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data/json-schemas.jsonl.gz")
def test_many_walks_through_schemas_of_the_wild(walker: Walker) -> None:
    outcomes = walk_the_wild(walker, every=1, times=3)
    assert outcomes["valid"] > 3200 and outcomes["too complex"] < 4, outcomes
