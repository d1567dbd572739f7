"""Patterns that look around: what is accepted is what they match, in every place where a pattern may stand."""

import contextlib
import json
import random
import re
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path

import llguidance
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.constraint import Constraint
from engine.errors import RequestError
from engine.grammar.language.boundaries import without_boundaries
from engine.grammar.language.expression import LanguageError, Languages
from engine.grammar.language.items import parsed
from engine.grammar.language.node import Node
from engine.grammar.language.patterns import Reader
from engine.grammar.language.writing import MAX_PARTS, in_slashes, written_parts
from engine.grammar.source import grammar_text, schema_text
from tests.engine.grammar.walks import Walker

TOKENIZER = llguidance.LLTokenizer("byte")
REAL: dict[str, str] = {
    # validators' e-mail addresses
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$": "a.b@c.de",
    r"^(?!\.)(?!.*\.\.)([a-z0-9_'+\-\.]*)[a-z0-9_+-]@([a-z0-9][a-z0-9\-]*\.)+[a-z]{2,}$": "a.b@c.de",
    r"^(?=.{1,64}@)[^\s@]+@[^\s@]+\.[a-z]{2,}$": "a@b.cd",
    r"^(?=.{3,30}$)(?=.{1,8}@)[a-z0-9.]+@[a-z]+\.[a-z]+$": "a.b@c.de",
    r"^(?!.*\.$)(?!\.)[A-Za-z0-9.]+@[a-z]+\.com$": "a.b@c.com",
    r"^[a-z0-9.]+(?<!\.)@[a-z]+(?:\.[a-z]+)+$": "a.b@c.de",
    r"^(?:(?!\.\.)[a-z.])+@[a-z]+$": "a.b@c",
    # decimals
    r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": "+1.5",
    r"^(?!^[-+.]*$)[+-]?0*(?:\d{0,3}|(?=[\d.]{1,6}0*$)\d{0,3}\.\d{0,2}0*$)$": "12.5",
    r"^(?!0\d)\d+(?:\.\d+)?$": "10.5",
    r"^-?(?!0+$)\d+$": "-10",
    r"^(?=.)([+-]?([0-9]*)(\.([0-9]+))?)$": "+.5",
    r"^(?!-0(?:\.0+)?$)-?(?:0|[1-9]\d*)(?:\.\d+)?$": "-1.5",
    # passwords
    r"^(?=.*[a-z])(?=.*[0-9]).{8,}$": "abcdefg1",
    r"^(?=.*[A-Za-z])(?=.*\d)[A-Za-z\d]{8,}$": "abcdefg1",
    r"^(?=.*[a-z])(?=.*[A-Z])(?=.*\d)(?=.*[@$!%*?&])[A-Za-z\d@$!%*?&]{8,}$": "aA1!aA1!",
    r"^(?=.*[a-z])(?=.*[A-Z])(?=.*\d)(?=.*[^\w\s]).{6,20}$": "aA1!aA",
    r"^(?=(.*[a-z]){2})(?=(.*\d){2}).{4,12}$": "a1b2",
    r"^(?!.*\s)(?=.*\d).{4,10}$": "abc1",
    r"^(?=[^a-z]*[a-z])(?=\D*\d)\S{5,}$": "abcd1",
    r"^(?!.*(?:password|1234))[a-z0-9]{6,16}$": "abc123",
    r"^(?!password$)(?!123456$).+$": "secret",
    # host names, labels, slugs
    r"^(?!-)[A-Za-z0-9-]{1,63}(?<!-)$": "a-b",
    r"^(?:(?!-)[A-Za-z0-9-]{1,63}(?<!-)\.)+[A-Za-z]{2,}$": "a-b.c.de",
    r"^(?=.{1,20}$)(?:(?!-)[a-z0-9-]{1,63}(?<!-)\.?)+$": "a-b.c",
    r"^(?!.*--)[a-z0-9-]{1,39}$": "a-b",
    r"^[a-z\d](?:[a-z\d]|-(?=[a-z\d])){0,38}$": "a-b1",
    r"^(?!-)(?!.*--)[A-Za-z0-9-]+(?<!-)$": "a-b",
    r"^(?![0-9]+$)(?!-)[a-z0-9-]{0,20}(?<!-)$": "a1",
    r"^[a-z](?!.*[-_]{2})[a-z0-9_-]{1,14}[a-z0-9]$": "a-b-c",
    r"^(?!xn--)(?!.*-s3alias$)[a-z0-9][a-z0-9.-]{1,20}[a-z0-9]$": "my.bucket",
    r"^(?!(?:\d{1,3}\.){3}\d{1,3}$)(?!.*\.\.)[a-z0-9][a-z0-9.-]+$": "a.b",
    r"^(?=[a-z0-9._]{4,12}$)(?!.*[_.]{2})[^_.].*[^_.]$": "ab.cd",
    r"^(?![_.])(?!.*[_.]{2})[a-zA-Z0-9._]+(?<![_.])$": "ab.c_d",
    # paths and names
    r"^(?!.*\.\.)[\w./-]+$": "a/b.c",
    r"^((?!\.\.).)*$": "a.b/c",
    r"^(?!/)(?!.*//)[a-z/]+(?<!/)$": "a/b",
    r"^(?!(?:CON|PRN|AUX|NUL)$)[A-Z]+$": "CONS",
    r"^(?!\s)[\s\S]+(?<!\s)$": "a b",
    r"^(?! )(?!.* $)(?!.*  ).+$": "a b c",
    r"^(?=\S)[^\r\n]*\S$": "a b",
    r"^(?!.*\.(?:exe|bat)$).+$": "a.txt",
    r"^(?!__)[a-z_]+(?<!__)$": "a__b",
    r"^(?!default$|public$)[a-z]+$": "defaults",
    r"^(?!v?\d+$)[a-z0-9]+$": "v1a",
    r"^/(?!api/)[a-z/]*$": "/apis",
    r"^(?!kube-)[a-z](?:[a-z-]*[a-z])?$": "kub-e",
    r"^(?!aws:)[a-z:]{1,10}$": "aw:s",
    # numbers with gaps in them
    r"^(?!000|666)[0-8][0-9]{2}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}$": "123-45-6789",
    r"^(?!0{3})\d{3}$": "001",
    r"^(?:(?!00)\d\d:){2}[0-5]\d$": "01:02:03",
    r"^(?!10\.)(?:\d{1,3}\.){3}\d{1,3}$": "192.168.0.1",
    r"^\d{1,3}(?=(?:,\d{3})*$)(?:,\d{3})*$": "1,234,567",
    r"^(?:\d+(?:,(?=\d)|$))+$": "1,22,3",
    r"^(?:#(?=[0-9a-f]{3}(?:[0-9a-f]{3})?$)[0-9a-f]+)$": "#a1b2c3",
    # words
    r"\bfoo\b": "a foo.",
    r"^\b[a-z]+\b(?: \b[a-z]+\b)*$": "ab cd",
    r"^\w+\b.*\b\w+$": "ab-cd",
    r"\B-\B": " - ",
    r"(?<!\w)@[a-z]+(?!\w)": "a @bc",
    r"(?<=^|,)[a-z]+(?=,|$)": "1,ab,2",
    r"(?<![a-z])ab(?![a-z])": "1ab2",
    r"^(?:(?!--).)*--$": "ab--",
    # addresses of the web, in which a boundary stands behind long runs
    r"^(?:https?:\/\/)?(?:www\.)?[-a-zA-Z0-9@:%._\+~#=]{1,256}\.[a-zA-Z0-9()]{1,6}\b"
    r"(?:[-a-zA-Z0-9()@:%_\+.~#?&\/=]*)$": "x.de/a",
    r"https?:\/\/(www\.)?[-a-zA-Z0-9@:%._\+~#=]{1,256}\.[a-zA-Z0-9()]{1,6}\b([-a-zA-Z0-9()@:%_\+.~#?&//=]*)": "http://a.de/",
    r"^[a-z.-]{1,256}\b(?:/[a-z]*)?$": "a.b/c",
    r"^[a-z-]{1,120}\b$|^x+\B$": "a-b",
    r"^/[a-z-]{2,200}\b(?:[/?][a-z]*|$)": "/ab?c",
    r"^(?!.{256,})(?!\.)[a-zA-Z0-9.-]+(?<!\.)$": "a.b-c",
    r"^(?!.{8,})[a-z-]+$": "ab-cdef",
    # where `^` and `$` stand, alternatives, groups around all
    r"^(?!a)b|c$": "abc",
    r"^((?!a).*)$": "bcd",
    r"(?:^(?=a)[a-c]+$)|(?:^(?!a)[d-f]+$)": "abc",
    r"(?!^ab$)^[ab]+$": "aba",
    r"(?=.*x$)^[a-x]+": "abx",
    r"(?i)^(?!ab)[a-c]+$": "aCb",
    r"(?!x)": "ax",
    r"a(?!b)": "aba",
    r"(?:a(?=b)|b(?=c|$))+": "ab",
}
JUNK = "ab-._@,:/ 10AX!ecé"


@cache
def accepting(kind: str, source: str, closes: bool = True) -> llguidance.LLMatcher:
    """Without `closes` of all that a schema accepts, not only of what generation is held to."""
    constraint = Constraint(kind=kind, source=source)  # type: ignore[arg-type]
    grammar = grammar_text(constraint) if closes else schema_text(json.loads(source), "schema", closes=False)
    matcher = llguidance.LLMatcher(TOKENIZER, grammar.text, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def accepts(kind: str, source: str, text: str, closes: bool = True) -> bool:
    copy = accepting(kind, source, closes).deep_copy()
    data = list(text.encode())
    return bool(copy.try_consume_tokens(data) == len(data) and copy.is_accepting())


def oracle(pattern: str) -> re.Pattern[str]:
    """Python's own, which has lookbehind of one width only."""
    return re.compile(pattern.replace("(?<=^|,)", "(?:(?<=^)|(?<=,))"), re.ASCII)


def near(text: str, seed: int) -> Iterator[str]:
    """The text and others that differ from it in a few places."""
    generator = random.Random(seed)
    yield text
    for _ in range(120):
        chars = list(text)
        for _ in range(generator.randint(1, 3)):
            at = generator.randint(0, len(chars))
            chars[at : at + generator.randint(0, 2)] = generator.choices([*JUNK, *text], k=generator.randint(0, 2))
        yield "".join(chars)


@pytest.mark.parametrize("pattern", REAL)
def test_what_is_accepted_is_what_is_matched(pattern: str) -> None:
    found = oracle(pattern)
    assert found.search(REAL[pattern])
    schema = json.dumps({"type": "string", "pattern": pattern})
    for text in near(REAL[pattern], len(pattern)):
        expected = found.search(text) is not None
        assert accepts("json_schema", schema, json.dumps(text, ensure_ascii=False), closes=False) == expected, text


@pytest.mark.parametrize("pattern", [pattern for pattern in REAL if oracle(pattern).fullmatch(REAL[pattern])])
def test_an_expression_matches_whole_texts(pattern: str) -> None:
    found = oracle(pattern)
    for text in near(REAL[pattern], len(pattern)):
        assert accepts("regex", pattern, text) == (found.fullmatch(text) is not None), text


@pytest.mark.parametrize("pattern", list(REAL)[::4])
def test_names_of_members(pattern: str) -> None:
    found = oracle(pattern)
    schemas = {
        "patternProperties": {"patternProperties": {pattern: {"const": 1}}, "additionalProperties": False},
        "propertyNames": {"propertyNames": {"pattern": pattern}, "additionalProperties": {"const": 1}},
    }
    for keyword, schema in schemas.items():
        try:
            accepting("json_schema", json.dumps(schema))
        except RequestError as error:  # a name has to match one pattern, which may be long
            assert f"{keyword!r}" in error.message
            continue
        for text in near(REAL[pattern], len(pattern)):
            member = json.dumps({text: 1}, ensure_ascii=False)
            assert accepts("json_schema", json.dumps(schema), member) == (found.search(text) is not None), text


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"not": {"pattern": "^(?!a)"}}, ["a", "ab"], ["b", ""]),
        ({"allOf": [{"pattern": "^(?!a)"}, {"pattern": "(?<!b)$"}]}, ["ca", ""], ["ac", "cb"]),
        ({"oneOf": [{"pattern": "^(?=a)"}, {"pattern": "^(?!a)b"}]}, ["a", "b"], ["c", ""]),
        ({"enum": ["ab", "b", "abc"], "pattern": r"^(?!.*c)a"}, ["ab"], ["b", "abc"]),
        ({"pattern": "^(?=.*a)(?=.*b)", "minLength": 3, "maxLength": 4}, ["abc", "xbax"], ["ab", "abccc", "xax"]),
        ({"anyOf": [{"pattern": "^(?=.*a)(?=.*b)[abc]+$"}, {"const": "x"}]}, ["cab", "x"], ["ca", "y"]),
    ],
)
def test_beside_other_keywords(schema: dict[str, object], good: list[str], bad: list[str]) -> None:
    for text in good + bad:
        source = json.dumps({"type": "string", **schema})
        assert accepts("json_schema", source, json.dumps(text)) is (text in good), text


BEFORE = ["a", "[a-]", "[a-]{1,3}", "[a-]+", "-{2}", "(?:a|-)", "[a-]*"]
BEHIND = [
    "",
    "$",
    "[a-]",
    "[a-]*",
    "[a-]*$",
    "[a-]{0,2}-",
    "[a-]?[-.]*$",
    "(?:a|-)",
    "-?a?",
    "(?:-a|a-)?$",
    "(?:-|aa|$)",
]


@pytest.mark.parametrize("anchor", ["", "^"])
@pytest.mark.parametrize("boundary", [r"\b", r"\B"])
def test_boundaries_between_classes(anchor: str, boundary: str) -> None:
    shortest = 1 if boundary == r"\B" else 0  # of which Python finds none in an empty text, where ECMA-262 has one
    texts = ["".join(text) for size in range(shortest, 5) for text in product("a-.", repeat=size)]
    for before, behind in product(BEFORE, BEHIND):
        pattern = f"{anchor}{before}{boundary}{behind}"
        languages, found = Languages(), re.compile(pattern)
        reader = Reader(languages)
        for whole, expected in ((False, found.search), (True, found.fullmatch)):
            node = reader.read(pattern, whole=whole)
            for text in texts:
                assert matches(languages, node, text) == (expected(text) is not None), (pattern, text)


def test_choices_behind_a_boundary_are_not_multiplied_without_end() -> None:
    for count, is_followed in ((2, True), (40, False)):
        items = parsed(r"^a\b" + "(?:b?|c?d?|-?e?)" * count)
        assert (without_boundaries(items, searched=True) != items) is is_followed


def matches(languages: Languages, node: Node, text: str) -> bool:
    for char in text:
        node = languages.derivative(node, ord(char))
    return node.nullable


def test_without_a_type_it_means_a_text() -> None:
    schema = json.dumps({"pattern": "^(?=.*a)(?=.*b).*$"})
    assert accepts("json_schema", schema, '"ba"')
    assert not accepts("json_schema", schema, "1")
    either = json.dumps({"type": ["string", "null"], "pattern": "^(?=.*a)(?=.*b).*$"})
    assert accepts("json_schema", either, "null")
    assert not accepts("json_schema", either, '"a"')


@pytest.fixture(scope="module")
def walker(smollm2_dir: Path) -> Walker:
    return Walker(smollm2_dir, 49152, 2)


SELDOM_MET = ("@", "-[0-9]", "^|,")
"""What a walk at random does not come by within its limit; that it may end there is what the oracle says."""


@pytest.mark.parametrize("pattern", list(REAL)[::3])
def test_walks_come_to_an_end(walker: Walker, pattern: str) -> None:
    ends = 0
    for seed in range(6):
        with contextlib.suppress(TimeoutError):
            value = walker.value({"type": "string", "pattern": pattern}, seed)
            assert oracle(pattern).search(value), value
            ends += 1
    assert ends or any(sign in pattern for sign in SELDOM_MET)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"^(a)(?!\1)", "reference to a group"),
        (r"(?<=a(?=b))b", "lookbehind that looks ahead"),
        (r"(?<=a\b)b", "lookbehind that looks ahead"),
        (r"^(?!(?:a|b)*a(?:a|b){12}$)[ab]*$", "more than"),
        (r"(?m)^(?!a)", "flags"),
        (r"^(?!\p{Script=Thai})", "is not known beside lookaround"),
        (r"^(?:a{1,200}\b-)+$", "count above"),
    ],
)
def test_what_cannot_be_followed_is_named(pattern: str, why: str) -> None:
    for keyword, schema in {
        "/pattern": {"type": "string", "pattern": pattern},
        "/patternProperties": {"type": "object", "patternProperties": {pattern: {}}},
    }.items():
        with pytest.raises(RequestError, match=why) as refused:
            grammar_text(Constraint(kind="json_schema", source=json.dumps(schema)))
        assert keyword in str(refused.value)
    with pytest.raises(RequestError, match=why) as refused:
        grammar_text(Constraint(kind="regex", source=pattern, param="response_format.value"))
    assert refused.value.param == "response_format.value"


@pytest.mark.parametrize(("kind", "source"), [("regex", "(?=a)b"), ("regex", "a(?!)")])
def test_an_expression_that_nothing_matches_is_refused(kind: str, source: str) -> None:
    with pytest.raises(RequestError, match="matches no text"):
        grammar_text(Constraint(kind=kind, source=source))  # type: ignore[arg-type]


ATOMS = ["a", "b", "[ab]", "[^a]", ".", r"\w", "-", "^", "$", r"\b", r"\B", "", "a*", "[ab]+"]
LOOKS = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}"])).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
        st.tuples(st.sampled_from("=!"), inner).map(lambda pair: f"(?{pair[0]}{pair[1]})"),
        st.tuples(st.sampled_from("=!"), st.sampled_from(["a", "ab", "[^a]b", "^", "^a", "(?:a|b)"])).map(
            lambda pair: f"(?<{pair[0]}{pair[1]})"
        ),
    ),
    max_leaves=7,
)


@settings(max_examples=400, deadline=None)
@given(
    pattern=LOOKS, texts=st.lists(st.text(alphabet="ab- é", min_size=1, max_size=6), max_size=20), whole=st.booleans()
)
def test_lookaround_anywhere(pattern: str, texts: list[str], whole: bool) -> None:
    """Anywhere at all, with the oracle of Python's `re`, which holds that no `\\B` is in an empty text."""
    languages = Languages()
    try:
        node = Reader(languages).read(pattern, whole=whole)
        parts = written_parts(languages, node)
    except LanguageError as error:
        assert "more than" in str(error) or "too complex" in str(error)
        return
    assert len(parts) <= MAX_PARTS
    compiled = re.compile(pattern, re.ASCII)
    for text in texts:
        expected = (compiled.fullmatch(text) if whole else compiled.search(text)) is not None
        assert all(re.search(part, text) for part in parts) is expected, (text, parts)
        assert not (expected and languages.is_empty(node))


def test_an_expression_keeps_its_meaning_between_slashes() -> None:
    for pattern in ("a/b", r"a\/b", "[/]x", "a\nb", "\\\nc", r"\\/d", r'"\{'):
        source = f"start: {in_slashes(pattern)}"
        text = {"a/b": "a/b", r"a\/b": "a/b", "[/]x": "/x", "a\nb": "a\nb", "\\\nc": "\nc", r"\\/d": "\\/d"}
        assert accepts("lark", source, text.get(pattern, '"{'))


@pytest.mark.parametrize("nowhere", ["a^b", "^(?!a)a", "(?!)", "^(?=.*a)[b-z]*$", "(?<=a)^b"])
def test_a_member_that_no_text_satisfies_is_not_begun(nowhere: str) -> None:
    lacks = {"type": "string", "pattern": nowhere}
    source = json.dumps({"properties": {"a": lacks, "b": {"anyOf": [lacks, {"type": "null"}]}}})
    assert accepts("json_schema", source, '{"b": null}')
    for beginning in ('{"a', '{"b": "'):
        data = list(beginning.encode())
        assert accepting("json_schema", source).deep_copy().try_consume_tokens(data) < len(data)


@pytest.mark.parametrize("most", [255, 65_535, 1_000_000, 10**10])
def test_beside_any_length(most: int) -> None:
    source = json.dumps({"type": "string", "pattern": "^(?!a)[a-z]+$", "maxLength": most})
    assert accepts("json_schema", source, '"bab"')
    assert not accepts("json_schema", source, '"ab"')
