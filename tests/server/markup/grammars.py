"""Following a constraint byte by byte, with the engine's own backend."""

from functools import cache

import llguidance

from engine.constraint import Constraint
from engine.grammar.backend_llguidance import LlguidanceGrammar, compile_grammar, make_tokenizer
from engine.grammar.grammar import GrammarError
from engine.grammar.vocabulary import Vocabulary
from engine.grammar.whole import lark_terminal, whole_parts

SPECIAL_ID = 256
EOS_ID = 257
SPECIAL_BYTE = "\x00"
"""Stands for the special token in texts of tests."""


@cache
def _tokenizer() -> llguidance.LLTokenizer:
    tokens = [*(bytes([byte]) for byte in range(256)), b"<|special|>", b""]
    return make_tokenizer(Vocabulary(tokens, special_ids=[SPECIAL_ID, EOS_ID], eos_token_ids=[EOS_ID]))


def compiled(constraint: Constraint) -> LlguidanceGrammar:
    """A state of the constraint's grammar over single bytes."""
    rules = [f"schema_{number}: %json {entry.schema}" for number, entry in enumerate(constraint.schemas)]
    patterns = [(number, entry.pattern, entry.param) for number, entry in enumerate(constraint.patterns)]
    rules += [f"PATTERN_{number}: {lark_terminal(whole_parts(regex, param))}" for number, regex, param in patterns]
    text = llguidance.LLMatcher.grammar_from_lark("\n".join([constraint.source, *rules]))
    return compile_grammar(_tokenizer(), text, constraint)


def accepted(grammar: LlguidanceGrammar, text: str) -> str:
    """As much of the text as the grammar allows; the grammar is moved to its end."""
    state = grammar.copy()
    taken = bytearray()
    for byte in text.encode():
        try:
            state.accept(SPECIAL_ID if chr(byte) == SPECIAL_BYTE else byte)
        except GrammarError:
            break
        taken.append(byte)
    return taken.decode(errors="ignore")


def matches(grammar: LlguidanceGrammar, text: str) -> bool:
    """Whether the whole text is allowed, and may end there."""
    state = grammar.copy()
    try:
        for byte in text.encode():
            state.accept(SPECIAL_ID if chr(byte) == SPECIAL_BYTE else byte)
    except GrammarError:
        return False
    return state.can_end
