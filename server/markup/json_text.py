"""Finds the end of a JSON object in text that comes in pieces, in linear time and without keeping it."""

import re

_OUTSIDE = re.compile(r'["{}\[\]]')
_INSIDE = re.compile(r'["\\]')


class ObjectEnd:
    """Watches the brackets and strings of one JSON object from its `{` on.

    That everything between them is JSON is the business of the grammar under which it was written.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def find(self, text: str, start: int) -> int | None:
        """Read on from `start`; the position behind the object's last bracket, None if the text ends before it."""
        position = start
        while position < len(text):
            if self._escaped:
                self._escaped = False
                position += 1
                continue
            found = (_INSIDE if self._in_string else _OUTSIDE).search(text, position)
            if found is None:
                return None
            position = found.end()
            char = found[0]
            if char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_string = not self._in_string
            else:
                self._depth += 1 if char in "{[" else -1
                if not self._depth:
                    return position
        return None
