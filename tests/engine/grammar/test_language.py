"""Languages against Python's `re`: what a pattern finds, what its complement and intersections hold."""

import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.grammar.language.expression import LanguageError, Languages, Node
from engine.grammar.language.patterns import Reader, write

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


def test_what_nothing_matches_is_known_to_be_empty() -> None:
    languages = Languages()
    read = Reader(languages).read
    assert languages.automaton(languages.both(read("^[0-9]+$"), read("^[a-z]*$"))).is_empty
    assert not languages.automaton(languages.both(read("^[0-9]*$"), read("^[a-z]*$"))).is_empty
    assert languages.automaton(languages.negation(read(""))).is_empty
    assert re.search(write(languages.automaton(languages.none)), "a") is None


@pytest.mark.parametrize(
    "pattern", [r"(a)\1", "(?=a)", r"\bx", "(?i)a", "[a-z&&[^b]]", "[[:alpha:]]", "(", "a" * 5000, "(?P<n>a)(?P=n)"]
)
def test_what_is_not_regular_or_ambiguous_is_refused(pattern: str) -> None:
    with pytest.raises(LanguageError):
        Reader(Languages()).read(pattern)


@pytest.mark.parametrize(
    "pattern", ["((a{1,99}){1,99}){1,99}", "(a|b)*a(a|b){30}", "[ab]{500}|c{900}x", "(a?){200}a{200}"]
)
def test_explosive_patterns_end_soon(pattern: str) -> None:
    began = time.perf_counter()
    languages = Languages()
    with pytest.raises(LanguageError):
        write(languages.automaton(languages.negation(Reader(languages).read(f"^{pattern}$"))))
    assert time.perf_counter() - began < 5
