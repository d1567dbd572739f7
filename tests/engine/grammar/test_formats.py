"""`format`: dates and times are those that exist, and what is no format of text is an annotation."""

import calendar
import itertools
import re
from typing import Any

import pytest

from engine.grammar.schema.formats import PATTERNS
from engine.grammar.schema.prepare import prepare_schema
from tests.engine.grammar.test_schema import accepts, matcher_of

YEARS = (*range(1, 10), *range(1595, 1605), *range(1895, 2105), 2400, 9999)


def takes(kind: str, value: Any, of: str = "string") -> bool:
    """Whether a value of that format may come."""
    return accepts(matcher_of(prepare_schema({"type": of, "format": kind}, param="schema")), value)


def test_the_dates_are_those_of_the_calendar() -> None:
    pattern = re.compile(PATTERNS["date"])
    for year, month, day in itertools.product(YEARS, range(14), range(33)):
        exists = 1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1]
        assert bool(pattern.search(f"{year:04}-{month:02}-{day:02}")) == exists, (year, month, day)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("date", ["2024-02-29", "2000-02-29"], ["2023-02-29", "1900-02-29", "2024-04-31", "2024-13-01", "0000-01-01"]),
        (
            "date-time",
            ["2024-02-29T23:59:59Z", "2016-12-31T23:59:60Z", "2015-06-30T23:59:60.5Z", "2024-01-01t00:00:00.25-03:30"],
            [
                "2023-02-29T00:00:00Z", "2016-11-30T23:59:60Z", "2016-12-31T12:00:60Z", "2016-12-31T23:59:60+01:00",
                "2024-01-01T24:00:00Z", "2024-01-01T00:60:00Z", "2024-01-01T00:00:00", "2024-01-01T00:00:00+24:00",
            ],
        ),
        ("time", ["23:59:59Z", "00:00:00+23:59", "23:59:60Z"], ["24:00:00Z", "00:00:61Z", "12:00:60Z", "00:00:00"]),
    ],
)  # fmt: skip
def test_times_are_those_that_exist(kind: str, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not takes(kind, text)] == []
    assert [text for text in bad if takes(kind, text)] == []


@pytest.mark.parametrize("kind", ["byte", "password", "binary", "phone", "nobody-knows", "Date"])
def test_what_is_unknown_of_text_is_an_annotation(kind: str) -> None:
    assert takes(kind, "anything at all: ünd so")


@pytest.mark.parametrize("kind", ["int32", "int64", "uint64", "float", "double", "date"])
def test_what_is_said_of_numbers_is_an_annotation(kind: str) -> None:
    assert takes(kind, -(2**50), of="integer")
    assert takes(kind, 1.5, of="number")
