"""How schemas are written as grammars: members in their order, present or not; what says the same is written once."""

from collections.abc import Iterator
from itertools import combinations, permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.grammar.language import remembered
from engine.grammar.language.expression import Languages
from engine.grammar.schema.prepare import prepare_schema
from engine.grammar.schema.strings import Strings
from engine.grammar.writing.alike import Alike
from tests.engine.grammar.test_schema import accepts, matcher

NAMES = "abcd"


def subsets(names: str) -> Iterator[tuple[str, ...]]:
    return (some for size in range(len(names) + 1) for some in combinations(names, size))


@pytest.mark.parametrize("required", list(subsets(NAMES)), ids="".join)
@pytest.mark.parametrize("others", [False, {"type": "null"}], ids=["closed", "open"])
def test_members_stand_in_their_order_and_may_lack_where_they_may(required: tuple[str, ...], others: Any) -> None:
    schema = {
        "type": "object",
        "properties": {name: {"enum": [number]} for number, name in enumerate(NAMES)},
        "required": list(required),
        "additionalProperties": others,
    }
    grammar = matcher(schema)
    for present in subsets(NAMES):
        for order in permutations(present):
            members = {name: NAMES.index(name) for name in order}
            is_valid = order == present and set(required) <= set(present)
            assert accepts(grammar, members) is is_valid, members
            assert accepts(grammar, {**members, "e": None}) is (is_valid and others is not False), members
    assert not accepts(grammar, {name: NAMES.index(name) for name in NAMES} | {"e": 4})


def test_objects_with_many_optional_members_grow_by_a_rule_for_each() -> None:
    def size(count: int) -> int:
        members = {f"name{number:03}": {"type": "string"} for number in range(count)}
        return len(prepare_schema({"type": "object", "properties": members}, param="schema").text)

    assert size(400) - size(200) < 1.2 * (size(200) - size(0))


def test_choices_share_the_members_that_they_begin_with() -> None:
    shared = {f"name{number:03}": {"type": "string"} for number in range(50)}

    def size(choices: int) -> int:
        kinds = [
            {"properties": {**shared, "kind": {"const": number}}, "required": ["kind"]} for number in range(choices)
        ]
        return len(prepare_schema({"type": "object", "anyOf": kinds}, param="schema").text)

    assert size(20) - size(10) < size(1)


def test_choices_that_contradict_each_other_are_not_spelled_out() -> None:
    members = {name: {"type": "string"} for name in "abcdef"}
    there_or_not = [{"anyOf": [{"properties": {name: False}}, {"required": [name]}]} for name in members]
    grammar = matcher({"type": "object", "properties": members, "allOf": [*there_or_not, *there_or_not]})
    for present in subsets("abcdef"):
        assert accepts(grammar, dict.fromkeys(present, ""))
    assert not accepts(grammar, {"a": 1})


WORDS = st.lists(st.text('ab/"\\\n.é|', max_size=4), min_size=1, max_size=5)


@settings(max_examples=60)
@given(words=WORDS, others=WORDS)
def test_listed_strings_and_all_others(words: list[str], others: list[str]) -> None:
    listed, rest = matcher({"enum": words}), matcher({"type": "string", "not": {"enum": words}})
    strings = Strings()
    pattern = strings.others(words)
    for text in [*words, *others]:
        assert accepts(listed, text) is (text in words)
        assert accepts(rest, text) is (text not in words)
        assert strings.finds(pattern, text) is (text not in words)
    names = matcher({"type": "object", "properties": {name: {"const": 1} for name in words}})
    for text in others:
        assert accepts(names, {text: 2}) is (text not in words)


def test_schemas_that_say_the_same_are_one() -> None:
    alike = Alike()
    text = frozenset({"string"})
    one = {"type": text, "enum": ["a"], "anyOf": [{"minLength": 1}, {"items": {"type": text}}]}
    assert alike.of(one) is one
    assert alike.of({"anyOf": [{"minLength": 1}, {"items": {"type": text}}], "enum": ["a"], "type": text}) is one
    for other in ({"enum": [1]}, {"enum": [True]}, {"enum": ["1"]}, {"properties": {"a": True, "b": True}},
                  {"properties": {"b": True, "a": True}}, {"items": False}, {"items": True}):  # fmt: skip
        assert alike.of(other) is other


def test_long_patterns_are_not_remembered() -> None:
    made: list[str] = []

    @remembered.remembered
    def make(pattern: str) -> str:
        made.append(pattern)
        return pattern

    long, folds = "a" * (remembered.MAX_CHARS + 1), "(?i)a"
    for pattern in ("a", long, folds):
        assert make(pattern) == make(pattern) == pattern
    assert made == ["a", long, long, folds, folds]
    for number in range(remembered.MAX_PATTERNS):
        make(str(number))
    make("a")
    assert made.count("a") == 2


def test_whether_names_run_out_is_asked_once_of_each_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    build = Languages.automaton

    def counting(self: Languages, *arguments: Any) -> Any:
        asked.append(1)
        return build(self, *arguments)

    monkeypatch.setattr(Languages, "automaton", counting)
    names = {"type": "object", "patternProperties": {"^[0-9a-f]{8}$": {}}, "additionalProperties": False}
    members = {f"m{number}": {**names, "maxProperties": number} for number in range(1, 30)}
    prepare_schema({"type": "object", "properties": members}, param="schema")
    assert len(asked) < 4
