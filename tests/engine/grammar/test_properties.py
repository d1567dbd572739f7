"""Properties of Unicode in patterns mean the same beside lookaround, turned round and where JSON escapes."""

import unicodedata

import pytest

from engine.errors import RequestError
from engine.grammar.language.classes import written_class
from engine.grammar.language.properties import property_chars
from engine.grammar.schema.prepare import prepare_schema
from tests.engine.grammar.test_schema import accepts, matcher, matcher_of

PATTERNS: dict[str, tuple[list[str], list[str]]] = {
    r"^(?!x)\p{L}+$": (["abc", "\u00e9t\u00e9", "\u65e5\u672c"], ["xa", "a1", ""]),
    r"^(?!aws:)(?!\s)[\p{L}\p{Z}\p{N}_.:/=+\-@]*$": (["Name", "a b", "team:1", ""], ["aws:x", " a", "a!"]),
    r"^\P{L}$": (["1", '"', "\n", "\\"], ["a", "\u00e9"]),
    r"^[^\p{L}]$": (["1", '"', "\x01"], ["a"]),
    r"^\p{ASCII}$": (["a", '"', "\x1f"], ["\u00e9"]),
    r'^[\p{L}"]+$': (['a"'], ["1"]),
    r"^[\P{L}a]$": (["1", "a", '"'], ["b"]),
    r"^\p{Lu}\b": (["A", "A b"], ["a", "Ab"]),
    r"^(?=.{2})\p{Letter}*$": (["ab"], ["a", "a1"]),
    r"^(?=..)\p{General_Category=Uppercase_Letter}+$": (["AB"], ["A", "Ab"]),
    r"^(?!\p{Nd})\p{Any}{2}$": (["a1"], ["1a"]),
    r"^(\p{Extended_Pictographic}|\p{Emoji_Component})+$": (["\U0001f600", "\u2764\ufe0f"], ["a"]),
    r"^(?!\d)(\p{Extended_Pictographic}|\p{Emoji_Component})+$": (["\U0001f600"], ["a", "1"]),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_properties_wherever_they_stand(pattern: str) -> None:
    good, bad = PATTERNS[pattern]
    grammar = matcher({"type": "string", "pattern": pattern})
    assert [text for text in good if not accepts(grammar, text)] == []
    assert [text for text in bad if accepts(grammar, text)] == []


def test_the_complement_of_a_property() -> None:
    grammar = matcher_of(prepare_schema({"type": "string", "not": {"pattern": r"^\p{Lu}"}}, param="x"))
    assert accepts(grammar, "abc") and not accepts(grammar, "Abc")


@pytest.mark.parametrize("name", ["L", "Nd", "{Sc}", "{Punctuation}", "{gc=Zs}", "{Cased_Letter}"])
def test_categories_are_unicode_s(name: str) -> None:
    wanted = {"{Punctuation}": "P", "{gc=Zs}": "Zs", "{Sc}": "Sc"}.get(name, name)
    chars = property_chars(name)
    assert chars is not None and written_class(chars)
    found = {code for low, high in chars for code in range(low, high + 1)}
    for code in range(0, 0x11000):
        category = unicodedata.category(chr(code))
        is_one = category in ("Lu", "Ll", "Lt") if wanted == "{Cased_Letter}" else category.startswith(wanted)
        assert (code in found) is is_one


def test_what_is_not_known_is_named() -> None:
    with pytest.raises(RequestError, match=r"\\p\{Script=Greek\} is not known beside lookaround"):
        prepare_schema({"type": "string", "pattern": r"^(?!x)\p{Script=Greek}+$"}, param="x")
