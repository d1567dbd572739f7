"""Takes out of a bitmask what leads where every way on completes a name, or an item, that is there already.

Behind the beginning of a name or an item that is there, something else can follow, unless a pattern, a length or a
range leaves too few; there it is looked ahead whether one is left.
"""

from collections.abc import Iterable
from decimal import Decimal

import numpy as np

from engine.grammar.backend_llguidance import LlguidanceGrammar
from engine.grammar.grammar import GrammarError
from engine.grammar.json_place import BARE, KEY, NAME, STRING, VALUE, Identity, Place, bare_value
from engine.grammar.likeness import IN_NAME, IN_STRING, can_repeat, likeness, significant
from engine.grammar.schema.names import MAX_WORDS
from engine.grammar.taken import Taken
from engine.grammar.token_index import TokenIndex, TokenSet, clear, digits
from engine.grammar.writing.nodes import ItemsTaken, NamesTaken

MAX_KNOWN_WAYS = 1000
MAX_STEPS = 300
"""Places that one bitmask is looked ahead from; what is not known then is taken for no way."""
MAX_TOKEN_DIGITS = 16
_TAILS = (b"", b"~", b"0", b"a", b"Z")
"""What a text that is there may go on with; most patterns know one of them."""
_DIGITS = (b"", *(b"%d" % digit for digit in range(10)))


class Corners:
    """Looks ahead over one vocabulary, for one grammar."""

    def __init__(self, index: TokenIndex, taken: Taken, names: NamesTaken, items: ItemsTaken) -> None:
        """What names there are, and whether items have to differ: see `Nodes`."""
        self._index = index
        self._tokens = index.vocabulary.tokens
        self._taken = taken
        self._few_names = names == "few"
        self._few_texts = items == "few"
        self._ways: dict[Place, bool] = {}
        """Whether there is a way on, of risky places."""
        self._steps = 0

    def forbid(self, grammar: LlguidanceGrammar, row: np.ndarray, place: Place) -> bool:
        """Take the tokens out that lead into a corner from where the grammar stands; whether there are any."""
        found = False
        self._steps = MAX_STEPS
        for token_id in self._risky(row, place):
            after = self._taken.behind(grammar, place, self._tokens[token_id])
            if after is not None and not self._has_way(grammar, token_id, after):
                clear(row, token_id)
                found = True
        return found

    def _risky(self, row: np.ndarray, place: Place) -> list[int]:
        """Tokens that may lead into a corner: what a name or an item that is there goes on with, or begins with."""
        found = self._risky_names(row, place) if self._few_names else []
        if place.may_differ:
            found = [*found, *self._risky_items(row, place)]
        return list(dict.fromkeys(found))

    def _risky_names(self, row: np.ndarray, place: Place) -> list[int]:
        kinds = self._index.kinds
        if place.mode not in IN_NAME:
            if place.mode == KEY:
                return kinds["quoted"].allowed(row)
            kind = "comma" if _is_crowded(place) else "comma and quote"
            return kinds[f"{kind} behind a text" if place.mode in IN_STRING else kind].allowed(row)
        rests = [name[len(place.partial) : -1] for name in place.names if name.startswith(place.partial)]
        return _among(row, self._index.begun(rests))

    def _risky_items(self, row: np.ndarray, place: Place) -> list[int]:
        if place.frame is None or not place.frame.is_watched:
            return []
        alike, index = likeness(place), self._index
        in_text = place.mode in (*IN_NAME, *IN_STRING)
        found = index.kinds["next behind a text" if in_text else "next"].allowed(row)
        if alike is None:
            return found
        if in_text:
            texts = [text for text in (*alike.names, *alike.values) if isinstance(text, bytes)]
            rests = [text[len(place.partial) :] for text in texts]
            ending = [token_id for rest in rests for token_id in index.ending(rest)]
            if self._few_texts or place.mode in IN_NAME:
                ending += index.begun(rest[:-1] for rest in rests)
            return found + _among(row, ending)
        found += index.kinds["structure"].allowed(row) + index.kinds["two quotes"].allowed(row)
        if place.mode == KEY:
            found += _among(row, index.begun(begin + name for name in alike.names for begin in (b'"', b' "')))
        if place.mode in (VALUE, BARE):
            found += _among(row, self._begun(alike.values, place))
        return found

    def _begun(self, values: Iterable[Identity], place: Place) -> list[int]:
        """Tokens that begin, or go on with, one of the values."""
        written = place.partial
        texts: list[bytes] = []
        numbers: set[bytes] = set()
        for value in values:
            if isinstance(value, bytes):
                is_text = value.endswith(b'"')
                if not is_text or (self._few_texts and not written):
                    text = b'"' + value if is_text else value[len(written) :]
                    texts += [text, b" " + text]
            elif isinstance(value, Decimal):
                numbers |= _number_parts(significant(value), digits(written).lstrip(b"0"))
        return self._index.begun(texts) + [
            token_id for part in numbers for token_id in self._index.by_digits.get(part, ())
        ]

    def _has_way(self, grammar: LlguidanceGrammar, token_id: int, place: Place) -> bool:
        """Whether behind a token, which leads to `place`, what is not there already can be completed."""
        if not self._is_risky(place):
            return True
        known = self._ways.get(place)
        if known is None:
            if self._steps <= 0:
                return False
            self._steps -= 1
            if len(self._ways) >= MAX_KNOWN_WAYS:
                self._ways.clear()
            text = self._tokens[token_id]
            known = self._is_completed(grammar, text, place) or self._looked_ahead(grammar, token_id, place)
            self._ways[place] = known
        return known

    def _is_risky(self, place: Place) -> bool:
        """Whether a name or an item is being begun that may be there already."""
        if self._few_names and _may_be_taken(place):
            return True
        is_endless = place.mode in IN_STRING and not self._few_texts
        return place.may_differ and not is_endless and can_repeat(place)

    def _is_completed(self, grammar: LlguidanceGrammar, text: bytes, place: Place) -> bool:
        """Whether what is being written is soon another name, text or number than is there, seen without a mask."""
        if place.mode in (KEY, NAME):
            if place.may_differ and can_repeat(place):
                return False
            begin = b'"' if place.mode == KEY else b""
            return any(
                place.partial + tail + b'"' not in place.names
                and self._taken.allows(grammar, text + begin + tail + b'"')
                for tail in _TAILS
            )
        ends: list[tuple[bytes, Identity]] = []
        if place.mode == STRING:
            ends = [(tail + b'"', place.partial + tail + b'"') for tail in _TAILS]
        elif place.mode == BARE:
            ends = [(tail + b" ", bare_value(place.partial + tail)) for tail in _DIGITS]
        alike = likeness(place) if ends else None
        return alike is not None and any(
            value not in alike.values and self._taken.allows(grammar, text + end) for end, value in ends
        )

    def _looked_ahead(self, grammar: LlguidanceGrammar, token_id: int, place: Place) -> bool:
        ahead = grammar.copy()
        row = np.zeros(-(-self._index.vocabulary.size // 32), dtype=np.int32)
        try:
            ahead.accept(token_id)
            ahead.fill_bitmask(row)
        except GrammarError:
            return False
        self._taken.forbid_marks(row)
        self._taken.forbid(ahead, row, place)
        in_text = place.mode in (*IN_NAME, *IN_STRING)
        risky = []
        letters = self._index.kinds["letters"].allowed(row)
        for following in letters or np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist():
            text = self._tokens[following]
            if text.isspace() and not in_text:
                continue  # which leads nowhere else
            after = self._taken.behind(ahead, place, text)
            if after is not None and not self._is_risky(after):
                return True
            if after is not None:
                risky.append((following, after))
        return any(self._has_way(ahead, following, after) for following, after in risky)


def _among(row: np.ndarray, ids: list[int]) -> list[int]:
    """Those of a few tokens that a bitmask allows."""
    return TokenSet(ids).allowed(row) if ids else []


def _number_parts(whole: bytes, begun: bytes) -> set[bytes]:
    """Digits that a token may add to what has been begun of a number's, to go on to it."""
    rest = (whole + b"0" * MAX_TOKEN_DIGITS)[len(begun) :]
    zeros = range(1 if begun else MAX_TOKEN_DIGITS)
    return {b"0" * size + rest[:end] for size in zeros for end in range(MAX_TOKEN_DIGITS + 1 - size)}


def _is_crowded(place: Place) -> bool:
    """Whether some object around may have all the names that it can."""
    frame = place.frame
    while frame is not None and len(frame.names) < MAX_WORDS:
        frame = frame.around
    return frame is not None


def _may_be_taken(place: Place) -> bool:
    """Whether a name is being begun that may be there already."""
    if place.mode == KEY or (place.mode == NAME and not place.partial):
        return len(place.names) >= MAX_WORDS  # names of which there are fewer in all are listed
    return place.mode in IN_NAME and any(name.startswith(place.partial) for name in place.names)
