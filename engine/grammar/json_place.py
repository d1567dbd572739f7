"""Where a JSON text stands: inside which objects and arrays, with which members and items so far, and what is being
written there.

Places are values that are never changed: to look what a token would do is to read it, and to copy one is to keep it.
Values are remembered in arrays whose items may have to differ, and in what stands inside them; of all others only the
names of members are.
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation

VALUE, KEY, NAME, ESCAPED_NAME, COLON, STRING, ESCAPED_STRING, BARE = range(8)
"""A value or what follows it; a name or what stands in its place; inside a name; behind its backslash; behind it;
inside another string; behind its backslash; inside a number or a word, of those that are remembered."""
_BARE = frozenset(b"-0123456789tfn")
DELIMITERS = frozenset(b",]} \t\n\r")
"""What may follow a number or a word."""

Identity = Hashable
"""A value that is equal to those of the values that are equal as JSON: a string as it is spelled behind its opening
quote, a word's letters, a number as a `Decimal`, an `ObjectValue`, an `ArrayValue`."""


@dataclass(frozen=True, slots=True)
class ObjectValue:
    """An object that is complete."""

    members: frozenset[tuple[bytes, Identity]]


@dataclass(frozen=True, slots=True)
class ArrayValue:
    """An array that is complete."""

    items: tuple[Identity, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """An object or an array that has begun."""

    around: "Frame | None"
    is_object: bool
    names: frozenset[bytes] = frozenset()
    """As they are spelled, each behind its opening quote and with its closing one."""
    differs: bool = False
    """An array whose items have to differ, as far as is known."""
    is_watched: bool = False
    """Its values are remembered."""
    name: bytes = b""
    """Of the member whose value is awaited or being written."""
    members: frozenset[tuple[bytes, Identity]] = frozenset()
    items: tuple[Identity, ...] = ()
    known: frozenset[Identity] = frozenset()
    """The items of an array, as far as they have to differ."""

    def value(self) -> Identity:
        """What it is when it ends here."""
        return ObjectValue(self.members) if self.is_object else ArrayValue(self.items)

    def with_value(self, value: Identity) -> "Frame":
        """Behind a member's value, or an item, that has been completed."""
        if not self.is_watched:
            return self
        if self.is_object:
            members = self.members | {(self.name, value)}
            return Frame(self.around, True, self.names, is_watched=True, members=members)
        known = self.known | {value} if self.differs else self.known
        return Frame(self.around, False, differs=self.differs, is_watched=True, items=(*self.items, value), known=known)

    def with_name(self, name: bytes) -> "Frame":
        """Behind a member's name."""
        if not self.is_watched:
            return Frame(self.around, True, self.names | {name})
        return Frame(self.around, True, self.names | {name}, is_watched=True, name=name, members=self.members)

    def loosened(self) -> "Frame":
        """The same array, whose items may be equal."""
        is_watched = self.around is not None and self.around.is_watched
        items = self.items if is_watched else ()
        return replace(self, differs=False, known=frozenset(), is_watched=is_watched, items=items)


@dataclass(frozen=True, slots=True)
class Repeated:
    """A text that completes what is there already."""

    end: int
    """Length of the part of the text that completes it."""
    place: "Place | None"
    """Where that part leads if items may be equal there; None behind a name, for none may come twice."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a text of JSON values; what is no JSON between them is passed over."""

    mode: int = VALUE
    partial: bytes = b""
    """Of a name, or of a value that is remembered, what is written of it; of a string, behind its opening quote."""
    frame: Frame | None = None
    may_differ: bool = False
    """Whether there are arrays whose items have to differ; each array is taken for one until it is `loosened`."""

    @property
    def names(self) -> frozenset[bytes]:
        """The names in the innermost object."""
        return frozenset() if self.frame is None else self.frame.names

    def loosened(self) -> "Place":
        """The same place, where the items of the innermost array may be equal."""
        assert self.frame is not None
        return replace(self, frame=self.frame.loosened())

    def read(self, text: bytes) -> "Place | Repeated":
        """The place behind a text that comes next, unless the text completes what is there already."""
        reading = _Reading(self)
        for position in range(len(text)):
            char = text[position : position + 1]
            if reading.mode == BARE and char[0] in DELIMITERS and reading.complete(bare_value(reading.partial)):
                return Repeated(position, reading.place())
            if reading.step(char):
                return Repeated(position + 1, None if reading.mode == NAME else reading.place())
        return reading.place()


class _Reading:
    """A place that moves on."""

    __slots__ = ("_may_differ", "frame", "mode", "partial")

    def __init__(self, place: Place) -> None:
        self.mode, self.partial, self.frame, self._may_differ = place.mode, place.partial, place.frame, place.may_differ

    def place(self) -> Place:
        """Where it is."""
        return Place(self.mode, self.partial, self.frame, self._may_differ)

    def complete(self, value: Identity) -> bool:
        """Take in a value that is complete; whether it is an item that is there already, which is taken as one that
        may be."""
        self.mode, self.partial = VALUE, b""
        frame = self.frame
        if frame is None or not frame.is_watched:
            return False
        is_repeated = value in frame.known
        self.frame = (frame.loosened() if is_repeated else frame).with_value(value)
        return is_repeated

    def step(self, char: bytes) -> bool:
        """Read one character; whether it completes what is there already."""
        if self.mode == VALUE or self.mode == KEY or self.mode == COLON:
            return self._between(char)
        if self.mode == NAME:
            return self._in_name(char)
        if self.mode == STRING:
            if char == b'"':
                return self.complete(self.partial + char)
            if char == b"\\":
                self.mode = ESCAPED_STRING
        elif self.mode != BARE:
            self.mode = NAME if self.mode == ESCAPED_NAME else STRING
        if self.mode == NAME or (self.frame is not None and self.frame.is_watched):
            self.partial += char
        return False

    def _in_name(self, char: bytes) -> bool:
        self.partial += char
        if char == b"\\":
            self.mode = ESCAPED_NAME
        elif char == b'"':
            assert self.frame is not None
            if self.partial in self.frame.names:
                return True
            self.frame = self.frame.with_name(self.partial)
            self.mode, self.partial = COLON, b""
        return False

    def _between(self, char: bytes) -> bool:
        """A character that stands in no string."""
        frame = self.frame
        is_watched = frame is not None and frame.is_watched
        if char == b'"':
            self.mode = NAME if self.mode == KEY else STRING
        elif char == b"{":
            self.mode, self.frame = KEY, Frame(frame, True, is_watched=is_watched)
        elif char == b"[":
            self.mode = VALUE
            self.frame = Frame(frame, False, differs=self._may_differ, is_watched=is_watched or self._may_differ)
        elif char in (b"}", b"]"):
            self.mode, self.frame = VALUE, None if frame is None else frame.around
            return frame is not None and self.complete(frame.value())
        elif char == b",":
            self.mode = KEY if frame is not None and frame.is_object else VALUE
        elif char == b":" and self.mode == COLON:
            self.mode = VALUE
        elif is_watched and self.mode == VALUE and char[0] in _BARE:
            self.mode, self.partial = BARE, char
        return False


def bare_value(text: bytes) -> Identity:
    """What a number or a word stands for."""
    try:
        return Decimal(text.decode())
    except InvalidOperation:
        return text
