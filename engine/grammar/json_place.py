"""Where a JSON text stands: inside which objects, with which members so far, and which name is being written.

Places are values that are never changed: to look what a token would do is to read it, and to copy one is to keep it.
"""

from dataclasses import dataclass

VALUE, KEY, NAME, ESCAPED_NAME, COLON, STRING, ESCAPED_STRING = range(7)
"""A value or what follows it; a name or what stands in its place; inside a name; behind its backslash; behind it;
inside another string; behind its backslash."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """An object or an array that has begun."""

    around: "Frame | None"
    is_object: bool
    names: frozenset[bytes] = frozenset()
    """As they are spelled, each behind its opening quote and with its closing one."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a text of JSON values; what is no JSON between them is passed over."""

    mode: int = VALUE
    partial: bytes = b""
    """Of a name, what is written behind its opening quote."""
    frame: Frame | None = None

    @property
    def names(self) -> frozenset[bytes]:
        """The names in the innermost object."""
        return frozenset() if self.frame is None else self.frame.names

    def read(self, text: bytes) -> "Place | None":
        """The place behind a text that comes next; None if the text completes a name that is there already."""
        mode, partial, frame = self.mode, self.partial, self.frame
        for position in range(len(text)):
            char = text[position : position + 1]
            if mode == NAME:
                partial += char
                if char == b'"':
                    assert frame is not None
                    if partial in frame.names:
                        return None
                    frame = Frame(frame.around, True, frame.names | {partial})
                    mode, partial = COLON, b""
                elif char == b"\\":
                    mode = ESCAPED_NAME
            elif mode == ESCAPED_NAME:
                partial += char
                mode = NAME
            elif mode == STRING:
                mode = {b'"': VALUE, b"\\": ESCAPED_STRING}.get(char, STRING)
            elif mode == ESCAPED_STRING:
                mode = STRING
            else:
                mode, frame = _between(mode, char, frame)
        return Place(mode, partial, frame)


def _between(mode: int, char: bytes, frame: Frame | None) -> tuple[int, Frame | None]:
    """Behind a character that stands in no string."""
    if char == b'"':
        return (NAME if mode == KEY else STRING), frame
    if char == b"{":
        return KEY, Frame(frame, True)
    if char == b"[":
        return VALUE, Frame(frame, False)
    if char in (b"}", b"]"):
        return VALUE, None if frame is None else frame.around
    if char == b",":
        return (KEY if frame is not None and frame.is_object else VALUE), frame
    if char == b":" and mode == COLON:
        return VALUE, frame
    return mode, frame
