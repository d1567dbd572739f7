"""Takes out of a bitmask what would complete a name, or an item that has to differ, that is there already.

A grammar knows which of its arrays have items that differ, but cannot say that they do: at the beginning and behind
each item of these it allows a mark (`DIFFERS`), which is asked for and never written.
"""

import numpy as np

from engine.grammar.backend_llguidance import LlguidanceGrammar
from engine.grammar.json_place import BARE, ESCAPED_NAME, ESCAPED_STRING, KEY, NAME, STRING, Place, Repeated, bare_value
from engine.grammar.token_index import TokenIndex, clear
from engine.grammar.writing.document import DIFFERS

MAX_PLACES = 64
"""Places of which is known what has been read from them."""


class Taken:
    """What is there already in texts of one vocabulary. Each question is about a grammar that stands at a place."""

    def __init__(self, index: TokenIndex) -> None:
        self._index = index
        self._tokens = index.vocabulary.tokens
        self._reads: dict[int, tuple[Place, dict[bytes, Place | Repeated]]] = {}
        """By the identity of a place, which is kept with them."""
        self._mark = index.ids.get(DIFFERS.encode(), [-1])[0]

    def behind(self, grammar: LlguidanceGrammar, place: Place, text: bytes, before: bytes = b"") -> Place | None:
        """The place behind a text, None if it completes what must not come twice.

        `before` is what has been read and the grammar does not know yet.
        """
        after, begin = self._read(place, text), 0
        while isinstance(after, Repeated):
            begin += after.end
            if after.place is None or self.must_differ(grammar, before + text[:begin]):
                return None
            after = after.place.read(text[begin:])
        return after

    def _read(self, place: Place, text: bytes) -> Place | Repeated:
        """What a text leads to, which is asked for several times while one bitmask is made."""
        found = self._reads.get(id(place))
        if found is None:
            if len(self._reads) >= MAX_PLACES:
                self._reads.clear()
            found = self._reads[id(place)] = place, {}
        known = found[1].get(text)
        if known is None:
            known = found[1][text] = place.read(text)
        return known

    def must_differ(self, grammar: LlguidanceGrammar, text: bytes) -> bool:
        """Whether behind a text, which begins an array or ends an item, that array's items have to differ."""
        ids = self._index.spelled(text)
        return ids is None or grammar.allows([*ids, self._mark])

    def allows(self, grammar: LlguidanceGrammar, text: bytes) -> bool:
        """Whether a text may come, whatever is there already; False where no tokens spell it."""
        ids = self._index.spelled(text)
        return ids is not None and grammar.allows(ids)

    def forbid_marks(self, row: np.ndarray) -> None:
        """Take the marks out."""
        for token_id in self._index.kinds["marks"].allowed(row):
            clear(row, token_id)

    def forbid(self, grammar: LlguidanceGrammar, row: np.ndarray, place: Place) -> bool:
        """Take the tokens out that would complete what is there already; whether there are any."""
        found = False
        if place.mode in (NAME, ESCAPED_NAME):
            for name in place.names:
                if name.startswith(place.partial):
                    found |= self._index.forbid(row, name[len(place.partial) :])
        elif place.frame is not None and place.frame.known:
            found = self._forbid_items(grammar, row, place)
        in_text = place.mode in (NAME, ESCAPED_NAME, STRING, ESCAPED_STRING)
        for token_id in self._index.kinds["two quotes" if place.mode == KEY else "comma and two quotes"].allowed(row):
            quoted = self._index.quoted.get(token_id)  # which is no name where the first quote ends a text
            if quoted is not None and (in_text or quoted not in place.names):
                continue
            if self.behind(grammar, place, self._tokens[token_id]) is None:
                clear(row, token_id)
                found = True
        if place.may_differ:
            for token_id in self._index.kinds[_ending_items(place)].allowed(row):
                if self.behind(grammar, place, self._tokens[token_id]) is None:
                    clear(row, token_id)
                    found = True
        return found

    def _forbid_items(self, grammar: LlguidanceGrammar, row: np.ndarray, place: Place) -> bool:
        assert place.frame is not None
        found = False
        if place.mode == BARE:
            if bare_value(place.partial) in place.frame.known and self.must_differ(grammar, b""):
                self._index.forbid_delimiters(row)
                found = True
        elif place.mode in (STRING, ESCAPED_STRING):
            for item in place.frame.known:
                if isinstance(item, bytes) and item.endswith(b'"') and item.startswith(place.partial):
                    rest = item[len(place.partial) :]
                    if self._index.ending(rest) and self.must_differ(grammar, rest):
                        found |= self._index.forbid(row, rest)
        return found


def _ending_items(place: Place) -> str:
    """The kind of tokens that may complete an item that they begin themselves, or that holds others."""
    frame = place.frame
    while frame is not None and not frame.known:
        frame = frame.around
    if frame is None:
        return "repeating"
    return "items behind a text" if place.mode in (NAME, ESCAPED_NAME, STRING, ESCAPED_STRING) else "items"
