"""Objects that take names which no schema lists, and arrays whose items have to differ: what is written decides which
may still come.

No grammar can say that a name comes once where any may come, or an item. So the text is followed beside the grammar,
and tokens that would complete a name or an item for the second time (`Taken`), or lead where only these are left
(`Corners`), are taken out of its bitmask. Texts are spelled in one way, so that equal ones are equal bytes
(`writing.texts`).
"""

import re

import numpy as np

from engine.errors import RequestError
from engine.grammar.backend_llguidance import LlguidanceGrammar
from engine.grammar.corners import Corners
from engine.grammar.grammar import Grammar, GrammarError
from engine.grammar.json_place import VALUE, Place
from engine.grammar.taken import Taken
from engine.grammar.token_index import TokenIndex
from engine.grammar.writing.nodes import ItemsTaken, NamesTaken

MAX_TAIL_BYTES = 1024
"""Of free text, what is kept to find the beginning of a JSON value in."""


class UnrepeatedGrammar:
    """A grammar under which no object has a name twice, and no array an item twice whose items have to differ."""

    def __init__(
        self,
        inner: LlguidanceGrammar,
        index: TokenIndex,
        *,
        opens: str = "",
        names: NamesTaken = "endless",
        items: ItemsTaken = "any",
    ) -> None:
        """`opens` is found where a JSON value begins in free text; empty: there is none but JSON and its marks.

        What `names` there are, and which `items`, is known of the schemas (`Nodes`).
        """
        self._inner = inner
        self._index = index
        self._taken = Taken(index)
        self._corners = Corners(index, self._taken, names, items) if names == "few" or items != "any" else None
        self._opens = re.compile(opens.encode()) if opens else None
        self._begin = Place(may_differ=items != "any")
        self._place: Place | None = None if opens else self._begin
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
        if self._begin.may_differ:
            self._taken.forbid_marks(row)
        if self._place is not None and self._place.frame is not None:
            before = row.copy()
            is_less = self._taken.forbid(self._inner, row, self._place)
            if self._corners is not None:
                sure = row.copy()
                if self._corners.forbid(self._inner, row, self._place) and not row.any():
                    row[:] = sure  # there is a way, which was too long to be found
            if is_less and not row.any():
                if self._opens is None:
                    raise GrammarError("nothing is left that is not there already")
                row[:] = before  # what free text seemed to begin is no JSON: what was taken for a name is none
        return True

    def forced_tokens(self) -> list[int]:
        """See `Grammar`."""
        return self._inner.forced_tokens()

    def accept(self, token_id: int) -> None:
        """See `Grammar`."""
        if token_id not in self._index.vocabulary.special_ids:
            self._read(self._index.vocabulary.tokens[token_id])
        self._inner.accept(token_id)

    def _read(self, token: bytes) -> None:
        """Follow a token that the grammar has not read yet."""
        at = 0
        while at < len(token):
            if self._place is not None:
                at = self._read_value(token, at)
                continue
            assert self._opens is not None
            tail = self._tail + token[at:]
            found = self._opens.search(tail, max(len(self._tail) - MAX_TAIL_BYTES, 0))
            if found is None:
                self._tail = tail[-MAX_TAIL_BYTES:]
                return
            self._place, self._tail, at = self._begin, b"", len(token) - len(tail) + found.end()

    def _read_value(self, token: bytes, at: int) -> int:
        """Read on in a JSON value; where what lies behind it begins, if free text follows."""
        for end in self._stops(token, at):
            place = self._place
            assert place is not None
            after = self._taken.behind(self._inner, place, token[at:end], token[:at])
            if after is None:
                if self._opens is None:
                    raise GrammarError("what is there already comes again")
                after = self._begin
            opened = after.frame
            if token[end - 1 : end] == b"[" and after.mode == VALUE and opened is not None and opened.differs:
                after = after if self._taken.must_differ(self._inner, token[:end]) else after.loosened()
            at = end
            if self._opens is not None and place.frame is not None and after.frame is None:
                self._place = None
                return at
            self._place = after
        return at

    def _stops(self, token: bytes, at: int) -> list[int]:
        """Where a part of the token ends behind which something has to be asked."""
        if self._opens is not None:
            return list(range(at + 1, len(token) + 1))
        opened = [end for end in range(at + 1, len(token)) if token[end - 1 : end] == b"["]
        return [*(opened if self._begin.may_differ else []), len(token)]

    @property
    def can_end(self) -> bool:
        """See `Grammar`."""
        return self._inner.can_end

    @property
    def is_finished(self) -> bool:
        """See `Grammar`."""
        return self._inner.is_finished


def unrepeated(
    inner: LlguidanceGrammar, names: NamesTaken, items: ItemsTaken, index: TokenIndex | None, opens: str
) -> Grammar:
    """The grammar, or one that follows what is written where that matters, for which it needs an index.

    Raises `RequestError` where the vocabulary has no token to ask the grammar with.
    """
    if names == "listed" and items == "any":
        return inner
    assert index is not None
    if items != "any" and not index.has_mark:
        raise RequestError("'uniqueItems' cannot be followed with this model's vocabulary")
    return UnrepeatedGrammar(inner, index, opens=opens, names=names, items=items)
