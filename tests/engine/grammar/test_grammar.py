"""Compiled constraints: what they allow, where they end, how the reasoning block gates them."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.constraint import Constraint, SchemaSource
from engine.errors import RequestError
from engine.grammar.anchors import without_anchors
from engine.grammar.backend_llguidance import compile_grammar, make_tokenizer
from engine.grammar.backend_outlines import compile_index, load_index, make_vocabulary
from engine.grammar.grammar import Grammar, GrammarError
from engine.grammar.reasoning import EndMark, ReasoningGrammar
from engine.grammar.source import grammar_text
from engine.grammar.vocabulary import Vocabulary

BYTES = [bytes([byte]) for byte in range(256)]
MERGES = [b"ab", b'{"', b'": ', b"</", b"think", b"</think>", b">\n", b">x", b"</think>x", b"12", b"  "]
EOS, CONTROL = 256 + len(MERGES), 257 + len(MERGES)
UNKNOWN = 300
VOCABULARY = Vocabulary(
    [*BYTES, *MERGES, b"<|end|>", b"<|tool|>", *[b""] * (UNKNOWN - CONTROL)],
    special_ids=(EOS, CONTROL),
    eos_token_ids=(EOS,),
)
TOKENIZER = make_tokenizer(VOCABULARY)
OUTLINES = make_vocabulary(VOCABULARY)


def compiled(kind: str, source: str, backend: str = "llguidance", **fields: object) -> Grammar:
    constraint = Constraint(kind=kind, source=source, **fields)  # type: ignore[arg-type]
    if backend == "llguidance":
        return compile_grammar(TOKENIZER, grammar_text(constraint).text, constraint)
    schema = json.loads(source) if kind == "json_schema" else None
    return load_index(compile_index(OUTLINES, constraint, schema), VOCABULARY.eos_token_ids)


def allowed(grammar: Grammar) -> set[int] | None:
    """The tokens a grammar allows, None for all."""
    row = np.full(-(-VOCABULARY.size // 32), -1, dtype=np.int32)
    if not grammar.fill_bitmask(row):
        return None
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())


def feed(grammar: Grammar, text: bytes) -> None:
    """Accept a text byte by byte, each of which must be allowed."""
    for byte in text:
        tokens = allowed(grammar)
        assert tokens is None or byte in tokens, (bytes([byte]), text)
        grammar.accept(byte)


def token(text: bytes) -> int:
    return 256 + MERGES.index(text)


@pytest.mark.parametrize("backend", ["llguidance", "outlines_core"])
class TestBackends:
    def test_allows_exactly_what_can_continue(self, backend: str) -> None:
        grammar = compiled("regex", "(ab|b)+c", backend)
        assert allowed(grammar) == {ord("a"), ord("b"), token(b"ab")}
        feed(grammar, b"ab")
        assert allowed(grammar) == {ord("a"), ord("b"), ord("c"), token(b"ab")}
        assert not grammar.can_end and not grammar.is_finished

    def test_is_finished_when_nothing_can_follow(self, backend: str) -> None:
        grammar = compiled("regex", "ab?", backend)
        feed(grammar, b"a")
        assert grammar.can_end and not grammar.is_finished
        assert allowed(grammar) == {ord("b"), EOS}
        feed(grammar, b"b")
        assert grammar.can_end and grammar.is_finished

    def test_copies_are_independent(self, backend: str) -> None:
        grammar = compiled("regex", "(ab|cd)x", backend)
        feed(grammar, b"a")
        copy = grammar.copy()
        feed(copy, b"bx")
        assert copy.is_finished and not grammar.can_end
        assert allowed(grammar) == {ord("b")}

    def test_control_tokens_are_no_text(self, backend: str) -> None:
        tokens = allowed(compiled("regex", r"[\s\S]+", backend))
        assert tokens is not None
        assert not tokens & {EOS, CONTROL, *range(CONTROL + 1, UNKNOWN)}
        assert {ord("<"), token(b"</think>")} <= tokens

    def test_a_token_that_is_not_allowed_is_an_error(self, backend: str) -> None:
        grammar = compiled("regex", "ab", backend)
        with pytest.raises(GrammarError):
            grammar.accept(ord("x"))

    def test_a_broken_expression_is_refused_by_field(self, backend: str) -> None:
        with pytest.raises(RequestError) as caught:
            compiled("regex", "(", backend, param="response_format.value")
        assert caught.value.param == "response_format.value"
        assert caught.value.message.startswith("response_format.value")
        assert len(caught.value.message) < 400

    def test_schema(self, backend: str) -> None:
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        schema["additionalProperties"] = False
        grammar = compiled("json_schema", json.dumps(schema), backend)
        feed(grammar, b'{"n":12}')
        assert grammar.is_finished


def test_outlines_core_follows_no_grammars() -> None:
    with pytest.raises(RequestError, match="outlines_core"):
        compiled("lark", 'start: "a"', "outlines_core")


def test_a_lark_grammar_with_schemas() -> None:
    schemas = (SchemaSource(param="tools[0]", schema='{"type": "integer"}'),)
    grammar = compiled("lark", 'start: "<" schema_0 ">"', schemas=schemas)
    feed(grammar, b"<12>")
    assert grammar.is_finished
    bad = (SchemaSource(param="tools[0].function.parameters", schema='{"$ref": "http://example.com/x"}'),)
    with pytest.raises(RequestError) as caught:
        compiled("lark", "start: schema_0", schemas=bad)
    assert caught.value.param == "tools[0].function.parameters"
    with pytest.raises(RequestError, match="reserved"):
        compiled("lark", 'start: schema_0\nschema_0: "a"', schemas=schemas)


def test_a_control_token_is_named_by_its_id() -> None:
    grammar = compiled("lark", f'start: "a" <[{CONTROL}]> "b"')
    feed(grammar, b"a")
    assert allowed(grammar) == {CONTROL}
    grammar.accept(CONTROL)
    feed(grammar, b"b")
    assert grammar.is_finished


def test_what_must_come_is_known_ahead() -> None:
    """Forced tokens are those that the masks would allow one by one, and no others."""
    grammar = compiled("regex", r'"\{ab12": x(y|z)ab')
    forced = grammar.forced_tokens()
    assert b"".join(VOCABULARY.tokens[token_id] for token_id in forced) == b'"{ab12": x'
    for token_id in forced:
        assert allowed(grammar) == {token_id}
        grammar.accept(token_id)
    assert allowed(grammar) == {ord("y"), ord("z")} and not grammar.forced_tokens()
    grammar.accept(ord("y"))
    assert grammar.forced_tokens() == [token(b"ab")]
    grammar.accept(token(b"ab"))
    assert grammar.is_finished and not grammar.forced_tokens()


@pytest.mark.parametrize(
    ("regex", "bare"),
    [
        ("^a$", "a"),
        ("a", "a"),
        (r"a\$", r"a\$"),
        (r"a\\$", r"a\\"),
        ("^a$|^b$", "a|b"),
        ("^(a|b)$", "(a|b)"),
        ("[|^$]", "[|^$]"),
        ("[]|]$", "[]|]"),
        ("", ""),
        (r"^\|$", r"\|"),
    ],
)
def test_anchors_at_the_ends_say_nothing(regex: str, bare: str) -> None:
    assert without_anchors(regex) == bare


class TestReasoning:
    MARK = EndMark("</think>", VOCABULARY)

    def gate(self, inner: Grammar | None = None, **budget: object) -> ReasoningGrammar:
        return ReasoningGrammar(self.MARK, inner, **budget)  # type: ignore[arg-type]

    def test_text_is_free_until_the_mark_and_then_constrained(self) -> None:
        grammar = self.gate(compiled("regex", "ab|b"))
        tokens = allowed(grammar)
        assert tokens is not None
        assert EOS not in tokens and CONTROL in tokens
        assert token(b"</think>") in tokens and token(b"</think>x") not in tokens
        feed(grammar, b"some < text </thin k")
        assert not grammar.can_end and not grammar.is_finished
        grammar.accept(token(b"</think>"))
        assert allowed(grammar) == {ord("a"), ord("b"), token(b"ab")}
        feed(grammar, b"ab")
        assert grammar.can_end and grammar.is_finished

    def test_a_mark_spelt_over_tokens(self) -> None:
        grammar = self.gate(compiled("regex", "ab|b"))
        feed(grammar, b"x<")
        feed(grammar, b"/think")
        tokens = allowed(grammar)
        assert tokens is not None and token(b">\n") in tokens
        assert token(b">x") not in tokens, "the answer would begin inside the token"
        grammar.accept(token(b">\n"))
        assert allowed(grammar) == {ord("a"), ord("b"), token(b"ab")}

    def test_a_mark_that_is_a_control_token(self) -> None:
        """As it is in tokenizers that call it special."""
        grammar = ReasoningGrammar(EndMark("<|tool|>", VOCABULARY), compiled("regex", "ab|b"))
        feed(grammar, b"x<|tool")
        assert CONTROL in (allowed(grammar) or ())
        grammar.accept(CONTROL)
        assert allowed(grammar) == {ord("a"), ord("b"), token(b"ab")}

    def test_without_an_inner_grammar_nothing_is_constrained(self) -> None:
        grammar = self.gate()
        assert allowed(grammar) is None and grammar.can_end and not grammar.is_finished
        grammar.accept(token(b"</think>"))
        assert allowed(grammar) is None and grammar.can_end

    @pytest.mark.parametrize("inner", [None, "ab|b"])
    def test_a_spent_budget_forces_the_end(self, inner: str | None) -> None:
        end = (token(b"</think>"), ord("\n"))
        grammar = self.gate(inner and compiled("regex", inner), max_tokens=3, end_token_ids=end)
        feed(grammar, b"abc")
        assert grammar.forced_tokens() == list(end)
        for forced in end:
            assert allowed(grammar) == {forced}
            assert not grammar.can_end or inner is None
            grammar.accept(forced)
        assert allowed(grammar) == (None if inner is None else {ord("a"), ord("b"), token(b"ab")})

    def test_a_budget_of_nothing(self) -> None:
        grammar = self.gate(max_tokens=0, end_token_ids=(token(b"</think>"),))
        assert allowed(grammar) == {token(b"</think>")}

    def test_an_end_within_the_budget_is_left_alone(self) -> None:
        grammar = self.gate(max_tokens=3, end_token_ids=(token(b"</think>"),))
        grammar.accept(token(b"</think>"))
        feed(grammar, b"abcdef")
        assert allowed(grammar) is None

    def test_copies_begin_anew(self) -> None:
        grammar = self.gate(compiled("regex", "ab|b"), max_tokens=1, end_token_ids=(token(b"</think>"),))
        first, second = grammar.copy(), grammar.copy()
        feed(first, b"x")
        assert allowed(first) == {token(b"</think>")}
        assert allowed(second) != {token(b"</think>")}

    @given(st.lists(st.sampled_from([*range(0x20, 0x7F), *range(256, UNKNOWN)]), max_size=12))
    def test_the_mark_is_found_wherever_tokens_end(self, ids: list[int]) -> None:
        """As in the text of all tokens, control tokens breaking it off."""
        state, found, text = 0, False, b""
        for token_id in [*ids, *b"</thi", token(b"</think>")]:
            state, rest = self.MARK.feed(state, token_id)
            text = b"" if token_id in VOCABULARY.special_ids else text + VOCABULARY.tokens[token_id]
            assert (rest is not None) == (b"</think>" in text)
            if rest is not None:
                assert text.split(b"</think>", 1)[1] == rest
                found = True
                break
        assert found
