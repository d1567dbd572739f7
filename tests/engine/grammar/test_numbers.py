"""Numbers are exact: what bounds, lists and multiples say is what comes out, to the digit, at any size."""

import json
import random
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

import llguidance
import pytest

from engine.errors import RequestError
from engine.grammar.language.writing import in_slashes
from engine.grammar.schema.prepare import prepare_schema
from engine.grammar.source import load_schema, schema_text
from engine.grammar.writing.multiples import ending
from engine.grammar.writing.numbers import Bounds, decimals, exact_decimal, integers
from tests.engine.grammar.test_schema import byte_tokenizer, matcher_of

PLACES = (0, 0, 1, 2, 3, 6)
SIZES = (3, 30, 300, 10**6, 2**64)


def some_number(generator: random.Random) -> Fraction:
    size = generator.choice(SIZES)
    return Fraction(generator.randint(-size, size), 10 ** generator.choice(PLACES))


def some_bounds(generator: random.Random) -> Bounds:
    low = some_number(generator) if generator.random() < 0.8 else None
    high = some_number(generator) if generator.random() < 0.8 else None
    if low is not None and generator.random() < 0.4:  # close together
        high = low + Fraction(generator.randint(0, 30), 10 ** generator.choice(PLACES))
    excluded = [generator.random() < 0.5 for _ in range(2)]
    return Bounds(low, high, low is not None and excluded[0], high is not None and excluded[1])


def near(bounds: Bounds, generator: random.Random) -> list[Fraction]:
    edges = [edge for edge in (bounds.low, bounds.high, Fraction(0), some_number(generator)) if edge is not None]
    steps = [Fraction(generator.randint(-12, 12), 10 ** generator.choice((*PLACES, 9))) for _ in range(5)]
    return [edge + step for edge in edges for step in [Fraction(0), *steps]]


def spelled(value: Fraction, generator: random.Random) -> str:
    text = format(exact_decimal(abs(value)), "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    zeros = generator.choice(["", "", "0", "000"])
    if zeros:
        text += zeros if "." in text else f".{zeros}"
    return f"-{text}" if value < 0 else text


STEPS = [1, 2, 3, 4, 5, 6, 7, 8, 10, 15, 21, 24, 30, Decimal("2.5"), Decimal("0.5"), Decimal("0.25"), Decimal("0.1")]


def test_what_is_no_multiple() -> None:
    generator = random.Random(5)
    for _ in range(250):
        bounds = Bounds(*(Fraction(generator.randint(-20, 40)) if generator.random() < 0.5 else None for _ in range(2)))
        steps = generator.sample(STEPS, generator.randint(0, 1))
        others = generator.sample(STEPS, generator.randint(1, 2))
        schema = {"type": generator.choice(["integer", "number"]),
                  "allOf": [*({"multipleOf": step} for step in steps), *({"not": {"multipleOf": n}} for n in others)],
                  **{name: int(bound) for name, bound in (("minimum", bounds.low), ("maximum", bounds.high))
                     if bound is not None}}  # fmt: skip
        values = [Fraction(generator.randint(-200, 200), generator.choice([1, 1, 4])) for _ in range(30)]
        expected = {
            value: bounds.holds(value) and (schema["type"] == "number" or value.denominator == 1)
            and all((value / Fraction(step)).denominator == 1 for step in steps)
            and not any((value / Fraction(step)).denominator == 1 for step in others)
            for value in values
        }  # fmt: skip
        try:
            written = prepare_schema(schema, param="x", closes=False)
        except RequestError as error:
            assert "no value at all" in error.message and not any(expected.values()), schema
            continue
        matcher = matcher_of(written)
        assert not matcher.is_error()
        for value, is_one in expected.items():
            text, copy = format(exact_decimal(value), "f").encode(), matcher.deep_copy()
            is_taken = copy.try_consume_tokens(list(text)) == len(text) and copy.is_accepting()
            assert is_taken == is_one, (schema, value)


def test_ranges_hold_what_lies_in_them_and_nothing_else() -> None:
    generator = random.Random(12)
    for _ in range(4000):
        bounds = some_bounds(generator)
        number, integer = decimals(bounds), integers(bounds)
        for value in near(bounds, generator):
            holds = bounds.holds(value)
            text = spelled(value, generator)
            found = number is not None and re.fullmatch(number, text) is not None
            assert found == holds, (bounds, text)
            if value.denominator == 1:
                found = integer is not None and re.fullmatch(integer, str(value)) is not None
                assert found == holds, (bounds, value)
        for text in ("1e-3", "-1e-3", "1E5", "-2.5e+10", "9.9e-1", "1e0", "0e5", "1e-07"):
            if number is not None and re.fullmatch(number, text):
                assert bounds.holds(Fraction(Decimal(text))), (bounds, text)


def test_the_library_reads_ranges_as_python_does() -> None:
    generator = random.Random(3)
    for _ in range(60):
        bounds = some_bounds(generator)
        number = decimals(bounds)
        if number is None:
            continue
        grammar = llguidance.LLMatcher(byte_tokenizer(), f"start: {in_slashes(number)}", log_level=0)
        for value in near(bounds, generator):
            assert takes(grammar, spelled(value, generator)) == bounds.holds(value), (bounds, value)


@pytest.mark.parametrize(
    "step", ["1", "2", "5", "10", "0.01", "0.1", "0.5", "0.25", "2.5", "12.5", "1000", "16", "0.125"]
)
def test_multiples(step: str) -> None:
    generator = random.Random(step)
    exact = Fraction(step)
    found = ending(exact)
    assert found is not None
    for _ in range(500):
        value = generator.choice([some_number(generator), generator.randint(-400, 400) * exact])
        assert (re.fullmatch(found, spelled(value, generator)) is not None) == (value % exact == 0), (step, value)


def compiled(schema: Any, *, closes: bool = True) -> llguidance.LLMatcher:
    text = schema_text(load_schema(schema if isinstance(schema, str) else json.dumps(schema), "x"), "x", closes=closes)
    matcher = llguidance.LLMatcher(byte_tokenizer(), text.text, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def takes(grammar: llguidance.LLMatcher, text: str) -> bool:
    copy = grammar.deep_copy()
    return bool(copy.try_consume_tokens(list(text.encode())) == len(text.encode()) and copy.is_accepting())


LAST64, LAST_UNSIGNED = 2**63 - 1, 2**64 - 1
EXACT: dict[str, tuple[Any, list[str], list[str]]] = {
    "a constant beyond doubles": ({"const": 1234567890123456789}, ["1234567890123456789"], ["1234567890123456768"]),
    "of int64": ({"const": -(2**63)}, [str(-(2**63))], [str(-(2**63) + 1)]),
    "of uint64": ({"enum": [LAST_UNSIGNED]}, [str(LAST_UNSIGNED)], [str(LAST_UNSIGNED + 1)]),
    "with an exponent": ('{"const": 1e21}', ["1000000000000000000000", "1e21", "1e+21"], ["1e22", "1"]),
    "a small one": ('{"const": 1e-07}', ["0.0000001", "1e-07", "1e-7"], ["0", "1e-8"]),
    "a fraction of many digits": ('{"const": 0.12345678901234567890123}', ["0.12345678901234567890123"],
                                  ["0.12345678901234568", "0.1234567890123456789"]),
    "bounds of int64": ({"type": "integer", "minimum": -(2**63), "maximum": LAST64},
                        [str(-(2**63)), str(LAST64), "0"], [str(LAST64 + 1), str(-(2**63) - 1)]),
    "bounds of uint64": ({"type": "integer", "minimum": 0, "exclusiveMaximum": 2**64},
                         [str(LAST_UNSIGNED), "0"], [str(2**64), "-1", "-0"]),
    "a bound of 1e21": ('{"type": "number", "maximum": 1e21}', ["1000000000000000000000", "-5.5"],
                        ["1000000000000000000000.1", "1000000000000000000001"]),
    "an excluded zero": ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, ["0.5", "0.01", "0.500"],
                         ["0", "0.0", "-0.1", "0.51", "-0"]),
    "both excluded": ('{"type": "number", "exclusiveMinimum": 0.1, "exclusiveMaximum": 0.11}', ["0.101", "0.1099"],
                      ["0.1", "0.11", "0.10", "0.110"]),
    "no integer between": ({"not": {"type": "integer"}, "type": "number", "minimum": 1, "maximum": 2},
                           ["1.5", "1.01"], ["1", "2", "1.0"]),
    "multiples of a cent": ('{"type": "number", "multipleOf": 0.01, "exclusiveMinimum": 0}', ["0.01", "19.99", "3"],
                            ["0", "0.001", "-1"]),
    "multiples that no ending shows": ({"type": "integer", "multipleOf": 7, "minimum": 8}, ["14", "70"], ["7", "15"]),
    "multiples of two": ({"allOf": [{"multipleOf": 4}, {"multipleOf": 10}], "type": "integer"}, ["20", "-40"], ["10"]),
    "an old draft's exclusion": ({"type": "number", "minimum": 0, "exclusiveMinimum": True}, ["0.5"], ["0"]),
    "in an object": ({"const": {"id": 18014398509481985}}, ['{"id": 18014398509481985}'],
                     ['{"id": 18014398509481984}']),
}  # fmt: skip


@pytest.mark.parametrize("case", EXACT)
def test_exact_numbers(case: str) -> None:
    schema, good, bad = EXACT[case]
    grammar = compiled(schema)
    assert [text for text in good if not takes(grammar, text)] == []
    assert [text for text in bad if takes(grammar, text)] == []


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2},
        {"type": "number", "exclusiveMinimum": 1, "maximum": 1},
        {"type": "integer", "multipleOf": 10, "minimum": 11, "maximum": 19},
        {"enum": [1, 2], "minimum": 3},
        {"type": "number", "multipleOf": 1, "not": {"type": "integer"}},
    ],
)
def test_ranges_without_a_number_are_refused(schema: Any) -> None:
    with pytest.raises(RequestError, match="accepts no value at all"):
        prepare_schema(schema, param="x")


def test_what_is_beyond_exact_arithmetic_is_refused() -> None:
    with pytest.raises(RequestError, match="beyond 1e400"):
        load_schema('{"const": 1e999999999}', "x")
    with pytest.raises(RequestError, match="multipleOf"):
        prepare_schema(load_schema('{"type": "number", "multipleOf": 0.3}', "x"), param="x")


def test_numbers_end() -> None:
    """A model that goes on writing digits comes to the end of the number."""
    for schema in (
        {"type": "integer"},
        {"type": "number"},
        {"type": "number", "minimum": 0},
        {"type": "integer", "minimum": 5},
    ):
        grammar = compiled(schema)
        assert grammar.try_consume_tokens(list(b"9" * 100)) < 50
    grammar = compiled({"type": "number"})
    assert grammar.try_consume_tokens(list(b"0." + b"3" * 100)) < 50


HUGE, TINY = Fraction(10) ** 308, Fraction(5, 10**324)
FAR: dict[str, tuple[Bounds, list[str], list[str]]] = {
    "above the least double": (Bounds(low=TINY), ["0.1", "5e-99", "7"], ["0", "-1", "-1e-9"]),
    "below the largest double": (Bounds(high=HUGE), ["0", "-5", "1e50"], []),
    "every double": (Bounds(-HUGE, HUGE), ["0", "-1e9", "12.5"], []),
    "below no number": (Bounds(high=-TINY), ["-0.1", "-3"], ["0", "1"]),
    "from the largest on": (Bounds(low=HUGE), ["2" + "0" * 308], ["1", "9" * 300, "1e99"]),
    "between two huge ones": (Bounds(HUGE, HUGE * 2), ["15" + "0" * 307], ["3" + "0" * 308, "1"]),
    "between two tiny ones": (Bounds(TINY, TINY * 10**9), ["0." + "0" * 320 + "3"], ["0", "0.1", "1e-99"]),
}


@pytest.mark.parametrize("case", FAR)
def test_bounds_far_from_all_that_is_written(case: str) -> None:
    bounds, good, bad = FAR[case]
    pattern = decimals(bounds)
    assert pattern is not None
    assert [text for text in good if not re.fullmatch(pattern, text)] == []
    assert [text for text in bad if re.fullmatch(pattern, text)] == []
    matcher = llguidance.LLMatcher(byte_tokenizer(), llguidance.LLMatcher.grammar_from_regex(pattern), log_level=0)
    assert not matcher.is_error()
