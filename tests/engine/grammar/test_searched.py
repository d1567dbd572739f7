"""Strings in which a pattern is searched for: masks that are cheap, and no others than without that."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.constraint import Constraint
from engine.grammar.backend_llguidance import LlguidanceGrammar, compile_grammar, make_tokenizer
from engine.grammar.language.searched import MAX_CHARS, fulfilling
from engine.grammar.schema.strings import Strings
from engine.grammar.source import grammar_text
from engine.grammar.vocabulary import Vocabulary
from engine.grammar.writing.terminals import RARE, Terminals
from tests.engine.grammar.test_schema import accepts, matcher

SEARCHED = [r"[0-9a-f]{8}-[0-9a-f]{4}", r"/v1/\w+$", "@", r"(?:^a|b+)c$", "^x|[yz]", r"(?i)straße", r"[^\s]\D", r'"\\',
            ".*", r"\p{Lu}", "a(?=b)|c", "", "$", r"(a|^b){2,3}[\u0000-\u001f]",
            r"\bx", r"\B-", r"[a-]+\b", r"https?://\w{1,256}\b([/?]\w*|$)"]  # fmt: skip
NOT_SEEN = ["^a", "^a|^b", r"\b-", r"\Bx", "(?<=a)b", "a(?=b)", "a$b", "[^\\s\\S]", f"a{{{MAX_CHARS + 1}}}", r"(a)\1"]


@pytest.mark.parametrize("pattern", SEARCHED)
@given(before=st.text(max_size=6))
def test_behind_any_text_the_pattern_is_found(pattern: str, before: str) -> None:
    text = fulfilling(pattern)
    assert text is not None
    assert Strings().finds(pattern, before + RARE + text)
    assert r"\b" in pattern.lower() or Strings().finds(pattern, before + text)


@pytest.mark.parametrize("pattern", NOT_SEEN)
def test_where_no_such_text_is_seen_there_is_none(pattern: str) -> None:
    assert fulfilling(pattern) is None


@pytest.fixture(scope="module")
def vocabulary(smollm2_dir: Path) -> Vocabulary:
    return Vocabulary.load(smollm2_dir, size=49152, eos_token_ids=[2])


SCHEMAS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a uuid": ({"pattern": "[0-9a-f]{8}-[0-9a-f]{4}"}, ["id: 0123abcd-ef01 é", "x" * 40, "0123abcd-ef0" * 3]),
    "an end": ({"pattern": r"/v1/\w+$"}, ["/v1/a/v1/b", "/v1/"]),
    "a length": ({"pattern": "[.]", "minLength": 30}, ["." * 30, "a.", "a" * 40 + "."]),
    "all but some": ({"pattern": "b", "not": {"enum": ["b", "abc"]}}, ["b", "abc", "bb", f"{RARE}b"]),
    "a rare character": ({"pattern": "@"}, [f"a{RARE}@b", f"{RARE}{RARE}", f"{RARE}a"]),
    "a boundary": ({"pattern": r"\bfoo\b"}, ["a foo.", "afoo", "foo-"]),
    "what is escaped": ({"pattern": r'["\\]x'}, ['\\"x', '"y', f'{RARE}"x']),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_guide_allows_nothing_more(name: str, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    schema, texts = SCHEMAS[name]
    constraint = Constraint(kind="json_schema", source=json.dumps({"type": "string", **schema}))
    tokenizer = make_tokenizer(vocabulary)

    def compiled() -> LlguidanceGrammar:
        return compile_grammar(tokenizer, grammar_text(constraint).text, constraint)

    guided, with_guide = compiled(), grammar_text(constraint).text
    monkeypatch.setattr(Terminals, "_guide", lambda *_: [])
    plain = compiled()
    assert RARE in with_guide
    masks = np.zeros((2, -(-vocabulary.size // 32)), dtype=np.int32)
    for text in texts:
        both = guided.copy(), plain.copy()
        for token_id in vocabulary.spelled(json.dumps(text, ensure_ascii=False).encode()):
            for row, grammar in zip(masks, both, strict=True):
                grammar.fill_bitmask(row)
            assert (masks[0] == masks[1]).all()
            assert [grammar.can_end for grammar in both] in ([True, True], [False, False])
            if not (masks[0][token_id // 32] >> (token_id % 32)) & 1:
                break
            for grammar in both:
                grammar.accept(token_id)


def test_a_pattern_that_is_found_everywhere_is_none() -> None:
    for pattern in (".*", "", "a*", "$"):
        assert accepts(matcher({"type": "string", "pattern": pattern}), "a\n\u2028\U0010ffff")
