"""Languages against Python's `re`: what a pattern finds, what its complement and intersections hold."""

import contextlib
import re
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.grammar.language.expression import MAX_WORK, LanguageError, Languages
from engine.grammar.language.node import Node, NotPlainError, least
from engine.grammar.language.patterns import Reader
from engine.grammar.language.writing import write
from tests import clocks

ATOMS = ["a", "b", "[ab]", "[^a]", ".", r"\d", r"\w", r"[^\d]", "-", r"\.", "^", "$", "()"]
PATTERNS = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}"])).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
    ),
    max_leaves=6,
)
TEXTS = st.text(alphabet="ab1-. é", max_size=5)


def ascii_digits(pattern: str) -> str:
    """The pattern as llguidance reads it; Python's `$` also stands before a last line feed, so no text here has one."""
    return pattern.replace(r"\d", "[0-9]").replace("[^[0-9]]", "[^0-9]").replace(r"\w", "[0-9A-Za-z_]")


def holds(languages: Languages, node: Node, text: str) -> bool:
    for char in text:
        node = languages.derivative(node, ord(char))
    return node.nullable


@settings(max_examples=300, deadline=None)
@given(pattern=PATTERNS, text=TEXTS)
def test_a_pattern_and_its_complement_part_all_texts(pattern: str, text: str) -> None:
    languages = Languages()
    node = Reader(languages).read(pattern)
    found = re.search(ascii_digits(pattern), text) is not None
    assert holds(languages, node, text) is found
    for language, expected in ((node, found), (languages.negation(node), not found)):
        try:
            written = write(languages.automaton(language))
        except LanguageError as error:
            assert "more than" in str(error)
            continue
        assert (re.search(written, text) is not None) is expected, written


@settings(max_examples=300, deadline=None)
@given(pattern=PATTERNS)
def test_the_shortest_text_is_seen_or_found(pattern: str) -> None:
    languages = Languages()
    node = Reader(languages).read(pattern)
    level, length = {node}, 0
    while level and not any(one.nullable for one in level):
        chars = sorted(languages.cuts(*level))[:-1]
        level, length = {after for one in level for char in chars
                         if not languages.is_empty(after := languages.derivative(one, char))}, length + 1  # fmt: skip
    assert languages.shortest(node) == (length if level else None)
    with contextlib.suppress(NotPlainError):
        assert least(node, {}) == (length if level else None)


@settings(max_examples=150, deadline=None)
@example(one="^", two="$^", text="")
@example(one="a", two="(?:$^|b)a?", text="")
@example(one="$^", two="$^a", text="a")
@given(one=PATTERNS, two=PATTERNS, text=TEXTS)
def test_intersections_and_unions(one: str, two: str, text: str) -> None:
    languages = Languages()
    first, second = (Reader(languages).read(pattern) for pattern in (one, two))
    in_first, in_second = (re.search(ascii_digits(pattern), text) is not None for pattern in (one, two))
    both = languages.automaton(languages.both(first, second))
    assert not (both.is_empty and in_first and in_second)
    assert holds(languages, languages.both(first, second), text) is (in_first and in_second)
    assert holds(languages, languages.either(first, second), text) is (in_first or in_second)


@pytest.mark.parametrize("pattern", [r"[\s\S]x", r"^[^]*$", "[]", "a|b[^c]"])
def test_what_is_written_can_be_read_again(pattern: str) -> None:
    languages = Languages()
    reader = Reader(languages)
    once = write(languages.automaton(reader.read(pattern)))
    different = languages.both(reader.read(pattern), languages.negation(reader.read(once)))
    assert languages.automaton(different).is_empty


def test_what_nothing_matches_is_known_to_be_empty() -> None:
    languages = Languages()
    read = Reader(languages).read
    assert languages.automaton(languages.both(read("^[0-9]+$"), read("^[a-z]*$"))).is_empty
    assert not languages.automaton(languages.both(read("^[0-9]*$"), read("^[a-z]*$"))).is_empty
    assert languages.automaton(languages.negation(read(""))).is_empty
    assert re.search(write(languages.automaton(languages.none)), "a") is None


@pytest.mark.parametrize("pattern", [r"(a)\1", r"(?<=\b)x", "(?m)a", "(", "a" * 5000, "(?P<n>a)(?P=n)", "(?<=a$)"])
def test_what_is_not_regular_or_ambiguous_is_refused(pattern: str) -> None:
    with pytest.raises(LanguageError):
        Reader(Languages()).read(pattern)


def refuse_all_but(pattern: str) -> None:
    """Try to write the complement of a pattern that is too much for it."""
    languages = Languages()
    with pytest.raises(LanguageError):
        write(languages.automaton(languages.negation(Reader(languages).read(f"^{pattern}$"))))
    assert languages._work <= MAX_WORK + 1


@pytest.mark.parametrize(
    ("pattern", "size"),
    [("((a{1,N}){1,N}){1,N}", 12), ("(a|b)*a(a|b){N}", 30), ("[ab]{N}|c{N}x", 200), ("(a?){N}a{N}", 200)],
)
def test_explosive_patterns_end_soon(pattern: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a bounded number of derivatives, and in no more time where there is more to explode."""
    monkeypatch.setattr(clocks, "REPEATS", 1)  # the first takes a second

    def work(size: int) -> Callable[[], None]:
        return lambda: refuse_all_but(pattern.replace("N", str(size)))

    clocks.assert_linear(work, size)
