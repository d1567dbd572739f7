"""Random walks through a constraint: any token that is allowed may be the one a model takes."""

import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import llguidance
import numpy as np

from engine.constraint import Constraint
from engine.grammar.backend_llguidance import compile_grammar, make_tokenizer
from engine.grammar.grammar import Grammar, GrammarError
from engine.grammar.repeats import unrepeated
from engine.grammar.source import grammar_text
from engine.grammar.token_index import TokenIndex
from engine.grammar.vocabulary import Vocabulary
from engine.grammar.writing.document import WrittenSchema

CLOSERS = (b'"', b"}", b"]", b'"}', b'"]', b'",', b'":')
HURRY = 0.5
"""How often a token that closes something is taken where one may come, so that walks end."""


def no_member_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`; JSON Schema says nothing of a member that is there twice."""
    assert len({name for name, _ in pairs}) == len(pairs), pairs
    return dict(pairs)


def exact_number(text: str) -> int | Decimal:
    """For `json.loads`; 1.0 is an integer, as JSON Schema has it."""
    value = Decimal(text)
    return int(value) if value == int(value) else value


def exactly(text: str | bytes) -> Any:
    """A JSON value to the digit."""
    return json.loads(text, object_pairs_hook=no_member_twice, parse_float=exact_number)


BYTES = Vocabulary([bytes([byte]) for byte in range(256)] + [b""], special_ids=[256], eos_token_ids=[256])
BYTE_INDEX = TokenIndex(BYTES)


def repeats_nothing(written: WrittenSchema, value: Any) -> bool:
    """Whether a value that a schema's grammar accepts has neither a name twice nor an item that has to differ."""
    constraint = Constraint(kind="json_schema", source="")
    text = llguidance.LLMatcher.grammar_from_lark(written.text)
    inner = compile_grammar(make_tokenizer(BYTES), text, constraint)
    grammar = unrepeated(inner, written.names, written.items, BYTE_INDEX, "")
    try:
        for byte in json.dumps(value, ensure_ascii=False).encode():
            grammar.accept(byte)
    except GrammarError:
        return False
    return grammar.can_end


class Walker:
    """Walks over one vocabulary."""

    def __init__(self, directory: Path, size: int, eos: int) -> None:
        self.vocabulary = Vocabulary.load(directory, size=size, eos_token_ids=[eos])
        self.tokenizer = make_tokenizer(self.vocabulary)
        self._index = TokenIndex(self.vocabulary)
        self._eos = eos
        closing = {token_id for token_id, text in enumerate(self.vocabulary.tokens) if text in CLOSERS}
        self._closers = sorted(closing - self.vocabulary.special_ids)
        self._known: tuple[str, str, Grammar] | None = None
        """What was walked through last, which often is walked through again."""

    def walk(self, kind: str, source: str, seed: int, limit: int = 300) -> bytes | None:
        """The text of a walk to its end, None if the limit came first.

        Raises `RequestError` for what is refused, `GrammarError` at a dead end. Where the end may come, it comes now
        and then before more does.
        """
        grammar = self._compiled(kind, source).copy()
        generator = random.Random(seed)
        row = np.zeros(-(-self.vocabulary.size // 32), dtype=np.int32)
        taken: list[int] = []
        while len(taken) < limit:
            if grammar.is_finished:
                return self.text(taken)
            if forced := grammar.forced_tokens():
                for token_id in forced:
                    grammar.accept(token_id)
                taken += forced
                continue
            grammar.fill_bitmask(row)
            allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
            assert len(allowed), f"nothing is allowed behind {self.text(taken)!r}"
            if grammar.can_end and generator.random() < HURRY:
                return self.text(taken)
            ends = [token_id for token_id in self._closers if (row[token_id >> 5] >> (token_id & 31)) & 1]
            token_id = int(generator.choice(ends if ends and generator.random() < HURRY else allowed))  # type: ignore[arg-type]
            if token_id == self._eos:
                return self.text(taken)
            grammar.accept(token_id)
            taken.append(token_id)
        return None

    def _compiled(self, kind: str, source: str) -> Grammar:
        if self._known is None or self._known[:2] != (kind, source):
            constraint = Constraint(kind=kind, source=source)  # type: ignore[arg-type]
            text = grammar_text(constraint)
            inner = compile_grammar(self.tokenizer, text.text, constraint)
            self._known = kind, source, unrepeated(inner, text.names, text.items, self._index, constraint.opens)
        return self._known[2]

    def text(self, token_ids: list[int]) -> bytes:
        """What the tokens say; none of them is a control token."""
        assert not self.vocabulary.special_ids & set(token_ids)
        return b"".join(self.vocabulary.tokens[token_id] for token_id in token_ids)

    def value(self, schema: Any, seed: int, limit: int = 300) -> Any:
        """The JSON value of a walk by a schema or its text. Raises as `walk` does, and `TimeoutError` at the limit."""
        text = self.walk("json_schema", schema if isinstance(schema, str) else json.dumps(schema), seed, limit)
        if text is None:
            raise TimeoutError
        return exactly(text)
