"""Which of an array's items the one that is being written may still come to equal."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal

from engine.grammar.json_place import (
    BARE,
    ESCAPED_NAME,
    ESCAPED_STRING,
    KEY,
    NAME,
    STRING,
    VALUE,
    ArrayValue,
    Frame,
    Identity,
    ObjectValue,
    Place,
)
from engine.grammar.token_index import digits

IN_STRING = (STRING, ESCAPED_STRING)
IN_NAME = (NAME, ESCAPED_NAME)


@dataclass(slots=True)
class Likeness:
    """What has to come next for an item to become one that is there already."""

    values: set[Identity] = field(default_factory=set)
    """Of the value that is awaited or being written."""
    names: set[bytes] = field(default_factory=set)
    """Of the name that is."""


def can_repeat(place: Place) -> bool:
    """Whether an item that has been begun may come to equal an earlier one."""
    return next(_spots(place), None) is not None


def likeness(place: Place) -> Likeness | None:
    """What may lead to an item that is there already; None if nothing can. Of an item that has not begun, anything
    that would begin one."""
    found = None
    for values, names in _spots(place, begins=True):
        found = found or Likeness()
        found.values.update(values)
        found.names.update(names)
    return found


Spot = tuple[list[Identity], list[bytes]]


def _spots(place: Place, *, begins: bool = False) -> Iterator[Spot]:
    """Of each earlier item that may come again, what it has at the place: a value, names, or neither between them."""
    inside: list[Frame] = []
    frame = place.frame
    while frame is not None and frame.is_watched:
        if frame.known and (begins or inside or place.mode != VALUE):
            for item in frame.known:
                spot = _spot(item, inside, place)
                if spot is not None:
                    yield spot
        inside.insert(0, frame)
        frame = frame.around


def _spot(value: Identity, inside: list[Frame], place: Place) -> Spot | None:
    """What a value has at the place, which is inside these of its parts, the outermost first; None if it differs."""
    for frame in inside:
        is_last = frame is inside[-1]
        if frame.is_object:
            if not isinstance(value, ObjectValue) or not frame.members <= value.members:
                return None
            if not frame.name:
                return _names(value, frame, place)
            value = next((member for name, member in value.members if name == frame.name), None)
        else:
            size = len(frame.items)
            if not isinstance(value, ArrayValue) or value.items[:size] != frame.items:
                return None
            if is_last and place.mode == VALUE:
                return [*value.items[size : size + 1]], []
            value = value.items[size] if size < len(value.items) else None
        if value is None:
            return None
    return ([value], []) if _goes_on(value, place) else None


def _names(value: ObjectValue, frame: Frame, place: Place) -> Spot | None:
    """Where a member may follow, or a name is being written."""
    begun = place.partial if place.mode in IN_NAME else b""
    names = [name for name, _ in value.members if name not in frame.names and name.startswith(begun)]
    if not names and place.mode in IN_NAME:
        return None
    return [], names if place.mode in (KEY, *IN_NAME) else []


def _goes_on(value: Identity, place: Place) -> bool:
    """Whether a value begins as what is written at the place."""
    if place.mode in IN_STRING:
        return isinstance(value, bytes) and value.endswith(b'"') and value.startswith(place.partial)
    if place.mode != BARE:
        return True
    if isinstance(value, bytes):
        return value.startswith(place.partial)
    return isinstance(value, Decimal) and is_begun(value, place.partial)


def is_begun(value: Decimal, number: bytes) -> bool:
    """Whether what is written of a number may become the value, wherever its point or exponent will be."""
    if value and (number[:1] == b"-") != (value < 0):
        return False
    begun, whole = digits(number).lstrip(b"0"), significant(value)
    return whole.startswith(begun) or (begun.startswith(whole) and not begun[len(whole) :].strip(b"0"))


def significant(value: Decimal) -> bytes:
    """The digits of a number, without zeros at its ends."""
    return bytes(48 + digit for digit in value.as_tuple().digits).strip(b"0")
