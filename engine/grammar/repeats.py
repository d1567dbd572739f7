"""Objects that take names which no schema lists: what is written decides which names may still come.

No grammar can say that a name comes once where any may come. So the text is followed beside the grammar, and tokens
that would complete a name for the second time are taken out of its bitmask. Names are spelled in one way, so that equal
ones are equal bytes (`writing.texts`). Behind the beginning of a name that is there, another letter can follow, unless
a pattern or a length leaves too few names; for such schemas it is looked ahead whether one is left.
"""

import re

import numpy as np

from engine.grammar.grammar import Grammar, GrammarError
from engine.grammar.json_place import ESCAPED_NAME, KEY, NAME, Place
from engine.grammar.schema.names import MAX_WORDS
from engine.grammar.vocabulary import Vocabulary
from engine.grammar.writing.nodes import NamesTaken

MAX_TAIL_BYTES = 1024
"""Of free text, what is kept to find the beginning of a JSON value in."""
FEW = 16
MAX_KNOWN_WAYS = 1000


_KINDS = ("letters", "quoted", "comma", "comma and quote", "two quotes", "comma and two quotes")


class TokenIndex:
    """The tokens of a vocabulary that may complete a name, by how they begin."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.ids: dict[bytes, list[int]] = {}
        self._ending: dict[bytes, list[int]] = {}
        """Tokens with a quote, by what stands up to it."""
        self._masks: dict[bytes, np.ndarray] = {}
        self._kinds: dict[str, list[int]] = {name: [] for name in _KINDS}
        for token_id, text in enumerate(vocabulary.tokens):
            if not text or token_id in vocabulary.special_ids:
                continue
            self.ids.setdefault(text, []).append(token_id)
            if len(text) == 1:
                self._kinds["letters"].append(token_id)
            quotes = text.count(b'"')
            if quotes:
                self._ending.setdefault(text[: text.index(b'"') + 1], []).append(token_id)
            if quotes or b"," in text:
                self._note(token_id, quotes, b"," in text)
        self.kinds = {name: np.array(ids, dtype=np.int64) for name, ids in self._kinds.items()}
        """Ids of the tokens of each kind of `_KINDS`."""

    def _note(self, token_id: int, quotes: int, has_comma: bool) -> None:
        holds = {
            "quoted": quotes > 0,
            "comma": has_comma,
            "comma and quote": has_comma and quotes > 0,
            "two quotes": quotes > 1,
            "comma and two quotes": has_comma and quotes > 1,
        }
        for name, is_so in holds.items():
            if is_so:
                self._kinds[name].append(token_id)

    def forbid(self, row: np.ndarray, rest: bytes) -> None:
        """Take the tokens that begin with the rest of a name, with its quote, out of a bitmask."""
        tokens = self.vocabulary.tokens
        ids = self._ending.get(rest[: rest.index(b'"') + 1], [])
        if len(ids) > FEW and rest == b'"':
            if rest not in self._masks:
                self._masks[rest] = self._mask_without(ids, len(row))
            row &= self._masks[rest]
            return
        for token_id in ids:
            if (tokens[token_id] or b"").startswith(rest):
                _clear(row, token_id)

    def _mask_without(self, ids: list[int], size: int) -> np.ndarray:
        bits = np.ones(size * 32, dtype=np.uint8)
        bits[ids] = 0
        return np.packbits(bits, bitorder="little").view(np.int32)


def _clear(row: np.ndarray, token_id: int) -> None:
    row.view(np.uint32)[token_id // 32] &= np.uint32(~(1 << (token_id % 32)) & 0xFFFFFFFF)


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
        self._ways: dict[Place, bool] = {}
        """Whether there is a way on, of risky places."""

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
            if not row.any():
                if self._opens is None:
                    raise GrammarError("no name is left for another member")
                row[:] = before  # what free text seemed to begin is no JSON: what was taken for a name is none
        return True

    def _forbid(self, row: np.ndarray, place: Place) -> None:
        """Take out what would complete a name that is there."""
        tokens = self._index.vocabulary.tokens
        if place.mode in (NAME, ESCAPED_NAME):
            for name in place.names:
                if name.startswith(place.partial):
                    self._index.forbid(row, name[len(place.partial) :])
        whole = "two quotes" if place.mode == KEY else "comma and two quotes"
        for token_id in allowed(row, self._index.kinds[whole]):
            if place.read(tokens[token_id]) is None:
                _clear(row, token_id)

    def _forbid_corners(self, row: np.ndarray, place: Place) -> None:
        """Take out what leads where every way on completes a name that is there."""
        tokens = self._index.vocabulary.tokens
        for token_id in self._risky(row, place):
            after = place.read(tokens[token_id])
            if after is not None and not self._has_way(self._inner, token_id, after):
                _clear(row, token_id)

    def _risky(self, row: np.ndarray, place: Place) -> list[int]:
        """Tokens that may lead into a corner: what a name that is there goes on with, or what begins one."""
        if place.mode not in (NAME, ESCAPED_NAME):
            begin = "quoted" if place.mode == KEY else "comma and quote"
            return allowed(row, self._index.kinds["comma" if place.mode != KEY and _is_crowded(place) else begin])
        ids = self._index.ids
        rests = [name[len(place.partial) : -1] for name in place.names if name.startswith(place.partial)]
        begun = dict.fromkeys(rest[:end] for rest in rests for end in range(1, len(rest) + 1))
        found = np.array([token_id for text in begun for token_id in ids.get(text, ())], dtype=np.int64)
        return allowed(row, found) if len(found) else []

    def _has_way(self, grammar: Grammar, token_id: int, place: Place) -> bool:
        """Whether behind a token, which leads to `place`, a name that is not there can be completed."""
        if not _is_risky(place):
            return True
        known = self._ways.get(place)
        if known is None:
            if len(self._ways) >= MAX_KNOWN_WAYS:
                self._ways.clear()
            known = self._ways[place] = self._looked_ahead(grammar, token_id, place)
        return known

    def _looked_ahead(self, grammar: Grammar, token_id: int, place: Place) -> bool:
        ahead = grammar.copy()
        row = np.zeros(-(-self._index.vocabulary.size // 32), dtype=np.int32)
        try:
            ahead.accept(token_id)
            ahead.fill_bitmask(row)
        except GrammarError:
            return False
        self._forbid(row, place)
        tokens = self._index.vocabulary.tokens
        risky = []
        letters = allowed(row, self._index.kinds["letters"])
        for following in letters or np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist():
            after = place.read(tokens[following])
            if after is not None and not _is_risky(after):
                return True
            if after is not None:
                risky.append((following, after))
        return any(self._has_way(ahead, following, after) for following, after in risky)

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


def _is_crowded(place: Place) -> bool:
    """Whether some object around may have all the names that it can."""
    frame = place.frame
    while frame is not None and len(frame.names) < MAX_WORDS:
        frame = frame.around
    return frame is not None


def _is_risky(place: Place) -> bool:
    """Whether a name is being begun that may be there already."""
    if place.mode == KEY or (place.mode == NAME and not place.partial):
        return len(place.names) >= MAX_WORDS  # names of which there are fewer in all are listed
    return place.mode in (NAME, ESCAPED_NAME) and any(name.startswith(place.partial) for name in place.names)
