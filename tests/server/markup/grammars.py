"""Following a constraint byte by byte, with the engine's own backend."""

from functools import cache

import llguidance
import numpy as np

from engine.constraint import Constraint
from engine.grammar.backend_llguidance import compile_grammar, make_tokenizer
from engine.grammar.grammar import Grammar, GrammarError
from engine.grammar.repeats import unrepeated
from engine.grammar.source import grammar_text
from engine.grammar.token_index import TokenIndex
from engine.grammar.vocabulary import Vocabulary

SPECIAL_ID = 256
EOS_ID = 257
SPECIAL_BYTE = "\x00"
"""Stands for the special token in texts of tests."""


@cache
def _vocabulary() -> Vocabulary:
    tokens = [*(bytes([byte]) for byte in range(256)), b"<|special|>", b""]
    return Vocabulary(tokens, special_ids=[SPECIAL_ID, EOS_ID], eos_token_ids=[EOS_ID])


@cache
def _tokenizer() -> llguidance.LLTokenizer:
    return make_tokenizer(_vocabulary())


@cache
def _index() -> TokenIndex:
    return TokenIndex(_vocabulary())


def compiled(constraint: Constraint) -> Grammar:
    """A state of the constraint's grammar over single bytes."""
    grammar = grammar_text(constraint)
    inner = compile_grammar(_tokenizer(), grammar.text, constraint)
    return unrepeated(inner, grammar.names, grammar.items, _index(), constraint.opens)


def accepted(grammar: Grammar, text: str) -> str:
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


def allows(grammar: Grammar, text: str, following: str) -> bool:
    """Whether a character may follow a text, by the bitmask."""
    state = grammar.copy()
    for byte in text.encode():
        state.accept(SPECIAL_ID if chr(byte) == SPECIAL_BYTE else byte)
    row = np.zeros(-(-_vocabulary().size // 32), dtype=np.int32)
    state.fill_bitmask(row)
    return bool(np.unpackbits(row.view(np.uint8), bitorder="little")[ord(following)])


def matches(grammar: Grammar, text: str) -> bool:
    """Whether the whole text is allowed, and may end there."""
    state = grammar.copy()
    try:
        for byte in text.encode():
            state.accept(SPECIAL_ID if chr(byte) == SPECIAL_BYTE else byte)
    except GrammarError:
        return False
    return state.can_end
