"""Patterns mean what ECMA-262 says, wherever they stand."""

import json
import re

import llguidance
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.constraint import Constraint
from engine.grammar.language.ecma import translated
from engine.grammar.source import grammar_text

TOKENIZER = llguidance.LLTokenizer("byte")
MEANINGS: dict[str, tuple[str, str]] = {
    r"\d": ("0123456789", "٣\U0001fbf8a"),
    r"\D": ("a٣", "7"),
    r"\w": ("aZ_9", "é-٣"),
    r"\W": ("é- ", "a_"),
    r"\s": (" \t\n\v\f\r\u00a0\u1680\u2028\u3000\ufeff", "\u0085a"),
    r"\S": ("a\u0085", " \ufeff"),
    ".": ("a\u0085é", "\n\r\u2028\u2029"),
    r"[\d.]": ("1.", "a٣"),
    r"[^\s]": ("a\u0085", " \u2028"),
    r"[\W\d]": ("é1", "a"),
    r"[\s\S]": ("a\n\u2028", ""),
    "[a&&b]": ("a&b", "c"),
    "[[]": ("[", "]"),
    "[]": ("", "a]"),
    "[^]": ("a\n", ""),
    r"[\b]": ("\b", "b"),
    r"\cJ": ("\n", "J"),
    r"\0": ("\0", "0"),
    r"\x41": ("A", "x"),
    r"\u0041": ("A", "u"),
    r"\u{1F600}": ("\U0001f600", "u"),
    r"\ud83d\ude00": ("\U0001f600", "a"),
    r"\/": ("/", "\\"),
    r"\-": ("-", "\\"),
    r"\e": ("e", "\\"),
    "]": ("]", "["),
    "}": ("}", "{"),
    "{": ("{", "}"),
    "(?<name>a)": ("a", "b"),
    r"\p{L}": ("aé", "1"),
    "[A-Fa-f\\-]": ("Aa-", "g"),
    "[a-]": ("a-", "b"),
}


def accepts(kind: str, source: str, text: str) -> bool:
    constraint = Constraint(kind=kind, source=source)  # type: ignore[arg-type]
    matcher = llguidance.LLMatcher(TOKENIZER, grammar_text(constraint), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return bool(matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting())


def in_json(text: str) -> str:
    """As models are to write it: what need not be escaped is not."""
    return json.dumps(text, ensure_ascii=False)


@pytest.mark.parametrize("pattern", MEANINGS)
def test_in_an_expression_and_in_a_schema(pattern: str) -> None:
    members, others = MEANINGS[pattern]
    schema = json.dumps({"type": "string", "pattern": f"^(?:{pattern})$"})
    for text in members + others:
        assert accepts("regex", pattern, text) == (text in members), ascii(text)
        if members:  # a schema that nothing satisfies is refused
            assert accepts("json_schema", schema, in_json(text)) == (text in members), ascii(text)


@pytest.mark.parametrize("pattern", [r"\d", r"\w", r"\s", ".", r"[\d.]", r"[^\s]"])
def test_in_a_grammar(pattern: str) -> None:
    members, others = MEANINGS[pattern]
    for text in members + others:
        assert accepts("lark", f"start: /{pattern}/", text) == (text in members), ascii(text)


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (r"start: /\x{41}\U0001F600/", "A\U0001f600"),
        (r"start: /(?P<n>a)b{1,2}/", "abb"),
        ('start: "\\\\d" X // /./\nX: /./s', "\\d\n"),
        ("start: /(?s:.)./ # /", "\na"),
        ("start: /[[:alpha:]&&[^a]]+/", "xyz"),
        (r"start: /a\/\w/", "a/b"),
        ('start: %json {"type": "string", "pattern": "^a/b/[0-9]$"}', '"a/b/1"'),
        ("start: /[]a]/", "]"),
    ],
)
def test_the_rest_of_a_grammar_stays_as_it_is(grammar: str, text: str) -> None:
    assert accepts("lark", grammar, text)


@pytest.mark.parametrize("pattern", [r"\u{110000}", r"[\u{FFFFFF}]", "[z-a]", r"(?<q>a)\k<q>", r"(a)\1"])
@pytest.mark.parametrize("kind", ["regex", "lark"])
def test_what_is_no_pattern_or_not_regular_is_refused(kind: str, pattern: str) -> None:
    constraint = Constraint(kind=kind, source=pattern if kind == "regex" else f"start: /{pattern}/")  # type: ignore[arg-type]
    assert llguidance.LLMatcher(TOKENIZER, grammar_text(constraint), log_level=0).is_error()


def test_a_grammar_has_no_lookaround() -> None:
    """A terminal does not see what follows it; `&` and `~` say what lookaround would within it."""
    grammar = grammar_text(Constraint(kind="lark", source="start: /(?!a)[a-z]/"))
    assert "look-ahead" in llguidance.LLMatcher(TOKENIZER, grammar, log_level=0).get_error()


@pytest.mark.parametrize("pattern", ["a{2}", "a{2,}", "a{2,3}", "x{", "a{,2}", "(?i:a)", "^a|b$", "(?:a)*?", "(?s)."])
def test_what_both_understand_stays(pattern: str) -> None:
    assert re.compile(translated(pattern))
    assert translated(translated(pattern)) == translated(pattern)


@given(st.text(st.sampled_from(list(r"\dDwWsS.[]^-{}()|*+?,:=!<>aA1ubx0cp/&~\U0001f600")), max_size=12))
def test_anything_can_be_translated_and_again(pattern: str) -> None:
    once = translated(pattern)
    assert translated(once) == once
