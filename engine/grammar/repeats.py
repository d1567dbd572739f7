"""Objects that take names which no schema lists: what is written decides which names may still come.

No grammar can say that a name comes once where any may come. So the text is followed beside the grammar, and tokens
that would complete a name for the second time are taken out of its bitmask. Names are spelled in one way, so that equal
ones are equal bytes (`writing.texts`). Behind the beginning of a name that is there, another letter can follow, unless
a pattern or a length leaves too few names; for such schemas it is looked ahead whether one is left.
"""

import re
from bisect import bisect_left
from collections.abc import Callable

import numpy as np

from engine.grammar.grammar import Grammar, GrammarError
from engine.grammar.json_place import ESCAPED_NAME, ESCAPED_STRING, KEY, NAME, STRING, Place
from engine.grammar.vocabulary import Vocabulary
from engine.grammar.writing.nodes import NamesTaken

MAX_TAIL_BYTES = 1024
"""Of free text, what is kept to find the beginning of a JSON value in."""
FEW = 16
_INSIDE = (NAME, ESCAPED_NAME, STRING, ESCAPED_STRING)


class TokenIndex:
    """The tokens of a vocabulary by how they begin, and those that may hold the whole of a name."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        known = [(text, token_id) for token_id, text in enumerate(vocabulary.tokens)
                 if text and token_id not in vocabulary.special_ids]  # fmt: skip
        known.sort()
        self.vocabulary = vocabulary
        self._texts = [text for text, _ in known]
        self._ids = np.array([token_id for _, token_id in known], dtype=np.int64)
        self._masks: dict[bytes, np.ndarray] = {}
        self.structural = _ids(known, lambda text: b'"' in text or b"," in text)
        self.closing = _ids(known, lambda text: b'"' in text and b"," in text)
        """Those that may lead out of a string and on to a name."""
        self.whole = _ids(known, lambda text: text.count(b'"') > 1)
        """Those that may hold a name with its quotes."""
        self.closing_whole = _ids(known, lambda text: text.count(b'"') > 2)
        """Those that may do so from inside of a string."""

    def beginning_with(self, prefix: bytes) -> np.ndarray:
        """Ids of the tokens that begin so."""
        first = bisect_left(self._texts, prefix)
        last = bisect_left(self._texts, prefix + b"\xff" * 8, lo=first)
        return self._ids[first:last]

    def forbid(self, row: np.ndarray, prefix: bytes) -> None:
        """Take the tokens that begin so out of a bitmask."""
        ids = self.beginning_with(prefix)
        if len(ids) <= FEW:
            for token_id in ids.tolist():
                row.view(np.uint32)[token_id // 32] &= np.uint32(~(1 << (token_id % 32)) & 0xFFFFFFFF)
            return
        mask = self._masks.get(prefix)
        if mask is None:
            bits = np.ones(len(row) * 32, dtype=np.uint8)
            bits[ids] = 0
            mask = np.packbits(bits, bitorder="little").view(np.int32)
            if prefix == b'"':
                self._masks[prefix] = mask
        row &= mask


def _ids(known: list[tuple[bytes, int]], takes: Callable[[bytes], bool]) -> np.ndarray:
    return np.array([token_id for text, token_id in known if takes(text)], dtype=np.int64)


def allowed(row: np.ndarray, ids: np.ndarray) -> list[int]:
    """Those of the tokens that a bitmask allows."""
    found: list[int] = ids[(row[ids >> 5] >> (ids & 31)) & 1 == 1].tolist()
    return found


class UnrepeatedGrammar:
    """A grammar under which no object has a name twice."""

    def __init__(self, inner: Grammar, index: TokenIndex, *, opens: str = "", is_narrow: bool = False) -> None:
        """`opens` is found where a JSON value begins in free text; empty: there is none but JSON and its marks.

        With `is_narrow` names may run out.
        """
        self._inner = inner
        self._index = index
        self._opens = re.compile(opens.encode()) if opens else None
        self._is_narrow = is_narrow
        self._place: Place | None = None if opens else Place()
        """None outside of JSON values."""
        self._tail = b""

    def copy(self) -> "UnrepeatedGrammar":
        """See `Grammar`."""
        other = object.__new__(UnrepeatedGrammar)
        other.__dict__.update(self.__dict__)
        other._inner = self._inner.copy()
        return other

    def fill_bitmask(self, row: np.ndarray) -> bool:
        """See `Grammar`."""
        if not self._inner.fill_bitmask(row):
            return False
        if self._place is not None and self._place.frame is not None:
            before = row.copy()
            self._forbid(row, self._place)
            if self._is_narrow:
                self._forbid_corners(row, self._place)
            if not row.any():  # what was taken for a name is none
                row[:] = before
        return True

    def _forbid(self, row: np.ndarray, place: Place) -> None:
        """Take out what would complete a name that is there."""
        tokens = self._index.vocabulary.tokens
        if place.mode in (NAME, ESCAPED_NAME):
            for name in place.names:
                if name.startswith(place.partial):
                    self._index.forbid(row, name[len(place.partial) :])
        for token_id in allowed(row, self._index.closing_whole if place.mode in _INSIDE else self._index.whole):
            if place.read(tokens[token_id]) is None:
                self._index.forbid(row, tokens[token_id])

    def _forbid_corners(self, row: np.ndarray, place: Place) -> None:
        """Take out what leads where every way on completes a name that is there."""
        tokens = self._index.vocabulary.tokens
        for token_id in self._risky(row, place):
            after = place.read(tokens[token_id])
            if after is not None and _is_risky(after):
                ahead = self._inner.copy()
                ahead.accept(token_id)
                if not self._has_way(ahead, after):
                    row.view(np.uint32)[token_id // 32] &= np.uint32(~(1 << (token_id % 32)) & 0xFFFFFFFF)

    def _risky(self, row: np.ndarray, place: Place) -> list[int]:
        """Tokens that may lead into a corner: what a name that is there goes on with, or what begins one."""
        if place.mode not in (NAME, ESCAPED_NAME):
            return allowed(row, self._index.closing if place.mode in _INSIDE else self._index.structural)
        found: list[int] = []
        for name in place.names:
            if name.startswith(place.partial):
                rest = name[len(place.partial) : -1]
                for end in range(1, len(rest) + 1):
                    ids = self._index.beginning_with(rest[:end])
                    found += [token_id for token_id in allowed(row, ids[:1])
                              if self._index.vocabulary.tokens[token_id] == rest[:end]]  # fmt: skip
        return list(dict.fromkeys(found))

    def _has_way(self, grammar: Grammar, place: Place) -> bool:
        """Whether a name that is not there can be completed from a risky place on."""
        row = np.zeros(-(-self._index.vocabulary.size // 32), dtype=np.int32)
        try:
            grammar.fill_bitmask(row)
        except GrammarError:
            return False
        self._forbid(row, place)
        risky = []
        tokens = self._index.vocabulary.tokens
        ids = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
        for token_id in ids.tolist():
            after = place.read(tokens[token_id])
            if after is not None and not _is_risky(after):
                return True
            if after is not None:
                risky.append((token_id, after))
        for token_id, after in risky:
            ahead = grammar.copy()
            ahead.accept(token_id)
            if self._has_way(ahead, after):
                return True
        return False

    def forced_tokens(self) -> list[int]:
        """See `Grammar`."""
        return self._inner.forced_tokens()

    def accept(self, token_id: int) -> None:
        """See `Grammar`."""
        self._inner.accept(token_id)
        if token_id not in self._index.vocabulary.special_ids:
            self._read(self._index.vocabulary.tokens[token_id])

    def _read(self, text: bytes) -> None:
        while text and self._opens is not None and self._place is None:
            tail = self._tail + text
            found = self._opens.search(tail, max(len(self._tail) - MAX_TAIL_BYTES, 0))
            if found is None:
                self._tail = tail[-MAX_TAIL_BYTES:]
                return
            self._place, self._tail, text = Place(), b"", tail[found.end() :]
            text = self._read_value(text)
        if text:
            text = self._read_value(text)
            if text:
                self._read(text)

    def _read_value(self, text: bytes) -> bytes:
        """Read on in a JSON value; what lies behind it, if free text follows."""
        assert self._place is not None
        if self._opens is None:
            self._place = self._place.read(text) or Place()
            return b""
        place = self._place
        for position in range(len(text)):
            after = place.read(text[position : position + 1]) or Place()
            if place.frame is not None and after.frame is None:
                self._place = None
                return text[position + 1 :]
            place = after
        self._place = place
        return b""

    @property
    def can_end(self) -> bool:
        """See `Grammar`."""
        return self._inner.can_end

    @property
    def is_finished(self) -> bool:
        """See `Grammar`."""
        return self._inner.is_finished


def unrepeated(inner: Grammar, names: NamesTaken, index: TokenIndex | None, opens: str) -> Grammar:
    """The grammar, or one that follows the names where these are not listed, for which it needs an index."""
    if names == "listed":
        return inner
    assert index is not None
    return UnrepeatedGrammar(inner, index, opens=opens, is_narrow=names == "few")


def _is_risky(place: Place) -> bool:
    """Whether a name is being begun that may be there already."""
    if place.mode == KEY:  # behind a comma
        return bool(place.names)
    return place.mode in (NAME, ESCAPED_NAME) and any(name.startswith(place.partial) for name in place.names)
