"""The headers that name what an answer was not held to, and what of its request was not used."""

from collections.abc import Sequence
from urllib.parse import quote

from engine.constraint import Relaxed

RELAXED_HEADER = b"x-headrace-relaxed"
UNUSED_HEADER = b"x-headrace-unused"
MAX_HEADER_CHARS = 2000
"""Of its value: proxies take headers of some 4 KiB, all of them together."""
_PLAIN = "/~!$&'()*+;=:@?"


def relaxed_header(relaxed: Relaxed) -> bytes:
    """The value of the header that names what was left out of schemas."""
    return pointers_header(relaxed.pointers, relaxed.count)


def pointers_header(pointers: Sequence[str], count: int) -> bytes:
    """JSON pointers into the request, separated by commas, and how many more there are, as `+3 more`.

    They are written as in the fragment of a URI (RFC 6901, section 6), so that names of any characters are ASCII and
    hold no comma.
    """
    shown: list[str] = []
    room = MAX_HEADER_CHARS
    for pointer in pointers:
        written = quote(pointer, safe=_PLAIN)
        room -= len(written) + 2
        if room < 0:
            break
        shown.append(written)
    if len(shown) < count:
        shown.append(f"+{count - len(shown)} more")
    return ", ".join(shown).encode("ascii")
