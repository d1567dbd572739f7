"""Grammars of the outlines_core library: a regular expression as an automaton over tokens, compiled ahead.

Every mask is a lookup afterwards, but compiling takes from milliseconds to minutes and gigabytes: only ever in the
process that can be killed.
"""

import json
import re
from typing import Any

import numpy as np
import outlines_core
from outlines_core.json_schema import build_regex_from_schema

from engine.constraint import Constraint
from engine.errors import RequestError
from engine.grammar.grammar import GrammarError
from engine.grammar.outlines_keywords import check_schema
from engine.grammar.vocabulary import Vocabulary
from engine.grammar.whole import whole_parts

WHITESPACE = r"[ ]?"


class OutlinesGrammar:
    """A state of an automaton over tokens."""

    def __init__(self, index: outlines_core.Index, eos_token_ids: tuple[int, ...]) -> None:
        self._index = index
        self._eos = eos_token_ids
        self._guide = outlines_core.Guide(index)
        self._taken: list[int] = []

    def copy(self) -> "OutlinesGrammar":
        """A new state after the same tokens; the automaton is shared."""
        copy = OutlinesGrammar(self._index, self._eos)
        for token_id in self._taken:
            copy.accept(token_id)
        return copy

    def fill_bitmask(self, row: np.ndarray) -> bool:
        """See `Grammar`."""
        row[:] = 0
        self._guide.write_mask_into(row.ctypes.data, row.size, row.itemsize)
        if self.can_end:
            for token_id in self._eos:
                row[token_id // 32] |= np.array(1 << (token_id % 32), dtype=np.uint32).view(np.int32)
        if not row.any():
            raise GrammarError("the constraint allows no further token")
        return True

    def forced_tokens(self) -> list[int]:
        """See `Grammar`. Text can nearly always be split into tokens in several ways, so none."""
        return []

    def accept(self, token_id: int) -> None:
        """See `Grammar`."""
        if token_id in self._eos:
            return
        try:
            self._guide.advance(token_id, return_tokens=False)
        except ValueError as error:
            raise GrammarError("the constraint does not allow this token") from error
        self._taken.append(token_id)

    @property
    def can_end(self) -> bool:
        """See `Grammar`."""
        return bool(self._guide.is_finished())

    @property
    def is_finished(self) -> bool:
        """See `Grammar`."""
        return self.can_end and not set(self._guide.get_tokens()) - set(self._eos)


def make_vocabulary(vocabulary: Vocabulary) -> outlines_core.Vocabulary:
    """The library's form of a vocabulary, without control tokens."""
    ids: dict[bytes, list[int]] = {}
    for token_id, text in enumerate(vocabulary.tokens):
        if text and token_id not in vocabulary.special_ids:
            ids.setdefault(text, []).append(token_id)
    eos = vocabulary.eos_token_ids[0] if vocabulary.eos_token_ids else vocabulary.size - 1
    return outlines_core.Vocabulary(eos, ids)


def compile_index(vocabulary: outlines_core.Vocabulary, constraint: Constraint, schema: Any) -> bytes:
    """The automaton of a constraint, as bytes that `load_index` reads. Raises `RequestError`.

    `schema` is the JSON value of a constraint of kind `json_schema`.
    """
    if constraint.kind == "lark":
        raise RequestError(
            f"{constraint.param} holds a grammar or tools, which this model's constraint backend, outlines_core, "
            "cannot follow",
            param=constraint.param,
        )
    try:
        if constraint.kind == "json_schema":
            check_schema(schema, constraint.param)
            regex = build_regex_from_schema(json.dumps(schema), WHITESPACE)
        else:
            (regex,) = whole_parts(constraint.source, constraint.param, most=1)
        state: bytes = outlines_core.Index(regex, vocabulary).__reduce__()[1][0]
    except (ValueError, TypeError, RuntimeError) as error:
        line = re.sub(r"\s+", " ", str(error)).strip()[:300]
        raise RequestError(f"{constraint.param} cannot be compiled: {line}", param=constraint.param) from None
    return state


def load_index(state: bytes, eos_token_ids: tuple[int, ...]) -> OutlinesGrammar:
    """The grammar that `compile_index` made."""
    return OutlinesGrammar(outlines_core.Index.from_binary(list(state)), eos_token_ids)
