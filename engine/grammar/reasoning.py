"""The block of reasoning before an answer: free text up to an end mark, closed by force when its budget is spent.

What may follow the mark is the inner grammar's business. A token that holds the mark's end and more than white space
behind it would begin the answer unseen by that grammar, so such tokens are not allowed while they would.
"""

from functools import lru_cache

import numpy as np

from engine.grammar.grammar import Grammar, GrammarError
from engine.grammar.vocabulary import Vocabulary


class EndMark:
    """A text that ends something, looked for in the bytes of tokens (Knuth, Morris and Pratt)."""

    def __init__(self, text: str, vocabulary: Vocabulary) -> None:
        assert text, "an empty mark is found everywhere"
        self._bytes = text.encode()
        self._vocabulary = vocabulary
        self._failures = _failures(self._bytes)
        self._masks: dict[int, np.ndarray] = {}

    def feed(self, state: int, token_id: int) -> tuple[int, bytes | None]:
        """From `state` bytes of the mark seen, read a token: the new state, and what lies behind the mark if it ended.

        Control tokens are no text and break a mark off, unless one is the mark.
        """
        if token_id in self._vocabulary.special_ids:
            return 0, b"" if self._vocabulary.tokens[token_id] == self._bytes else None
        return self._read(state, self._vocabulary.tokens[token_id])

    def _read(self, state: int, text: bytes) -> tuple[int, bytes | None]:
        mark, failures = self._bytes, self._failures
        for position, byte in enumerate(text):
            while state and mark[state] != byte:
                state = failures[state - 1]
            state += mark[state] == byte
            if state == len(mark):
                return 0, text[position + 1 :]
        return state, None

    def bitmask(self, state: int) -> np.ndarray:
        """int32 `[ceil(V/32)]`: every token but those that end the text, or run on behind the mark."""
        mask = self._masks.get(state)
        if mask is None:
            mask = self._masks[state] = self._make_mask(state)
        return mask

    def _make_mask(self, state: int) -> np.ndarray:
        vocabulary = self._vocabulary
        allowed = np.ones(-(-vocabulary.size // 32) * 32, dtype=bool)
        last = self._bytes[-1:]
        for token_id, text in enumerate(vocabulary.tokens):
            if last in text and token_id not in vocabulary.special_ids:
                rest = self._read(state, text)[1]
                allowed[token_id] = rest is None or not rest.strip()
        allowed[list(vocabulary.eos_token_ids)] = False
        return np.packbits(allowed, bitorder="little").view(np.int32)


class ReasoningGrammar:
    """Reasoning, then `inner` (None: anything).

    With a budget, `end_token_ids` are forced once `max_tokens` tokens came without the mark.
    """

    def __init__(
        self,
        mark: EndMark,
        inner: Grammar | None,
        *,
        max_tokens: int | None = None,
        end_token_ids: tuple[int, ...] = (),
    ) -> None:
        assert max_tokens is None or end_token_ids
        self._mark = mark
        self._inner = inner
        self._max_tokens = max_tokens
        self._end_token_ids = end_token_ids
        self._num_tokens = 0
        self._state = 0
        self._closed = False
        self._forced = 0
        """How many of `end_token_ids` have been forced; 0 while nothing is."""

    def copy(self) -> "ReasoningGrammar":
        """See `Grammar`; of a state that has not begun."""
        assert self._num_tokens == 0
        inner = None if self._inner is None else self._inner.copy()
        return ReasoningGrammar(self._mark, inner, max_tokens=self._max_tokens, end_token_ids=self._end_token_ids)

    @property
    def _is_forcing(self) -> bool:
        if self._forced:
            return self._forced < len(self._end_token_ids)
        return not self._closed and self._max_tokens is not None and self._num_tokens >= self._max_tokens

    def fill_bitmask(self, row: np.ndarray) -> bool:
        """See `Grammar`."""
        if self._is_forcing:
            token_id = self._end_token_ids[self._forced]
            row[:] = 0
            row.view(np.uint32)[token_id // 32] = np.uint32(1 << (token_id % 32))
            return True
        if self._inner is None:
            return False
        if self._closed:
            return self._inner.fill_bitmask(row)
        row[:] = self._mark.bitmask(self._state)
        return True

    def forced_tokens(self) -> list[int]:
        """See `Grammar`."""
        if self._is_forcing:
            return list(self._end_token_ids[self._forced :])
        return self._inner.forced_tokens() if self._closed and self._inner is not None else []

    def accept(self, token_id: int) -> None:
        """See `Grammar`."""
        if self._is_forcing:
            self._forced += 1
            self._closed = self._forced == len(self._end_token_ids)
            return
        if self._closed:
            if self._inner is not None:
                self._inner.accept(token_id)
            return
        self._num_tokens += 1
        self._state, rest = self._mark.feed(self._state, token_id)
        if rest is not None:
            if self._inner is not None and rest.strip():
                raise GrammarError("the answer began inside the token that ended the reasoning")
            self._closed = True

    @property
    def can_end(self) -> bool:
        """See `Grammar`."""
        return self._inner is None or (self._closed and not self._is_forcing and self._inner.can_end)

    @property
    def is_finished(self) -> bool:
        """See `Grammar`."""
        return self._inner is not None and self._closed and not self._is_forcing and self._inner.is_finished


@lru_cache(maxsize=64)
def _failures(mark: bytes) -> tuple[int, ...]:
    """For each prefix of `mark`, the length of its longest proper prefix that is its suffix too."""
    table = [0]
    for byte in mark[1:]:
        length = table[-1]
        while length and mark[length] != byte:
            length = table[length - 1]
        table.append(length + (mark[length] == byte))
    return tuple(table)
