"""The fixed text around a call's name and arguments, written once: a matcher and a grammar are both read off it.

A frame is a row of pieces, matched from left to right without a choice to take back:

    "text"            itself
    GAP               up to `MAX_GAP` characters of white space
    OneOf("a", "")    the first of these that is there
    NAME              the name of a declared tool

Every frame ends in front of something of another form, so what a piece could still take is always its own.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum, auto

MAX_GAP = 4
SPACE = " \n\t"
MAX_NAME_CHARS = 64
NAME_CHARS = r"[A-Za-z0-9_.:/\-]"
_NAME = re.compile(rf"{NAME_CHARS}{{0,{MAX_NAME_CHARS}}}")
_GAP = re.compile(rf"[{SPACE}]{{0,{MAX_GAP}}}")
GAP_REGEX = rf"[ \n\t]{{0,{MAX_GAP}}}"


class Mark(Enum):
    """Pieces without a text of their own."""

    GAP = auto()
    NAME = auto()


GAP, NAME = Mark.GAP, Mark.NAME


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of several texts; an empty one must be the last."""

    texts: tuple[str, ...]


Piece = str | Mark | OneOf
Frame = tuple[Piece, ...]


class Undecided(Enum):
    """What is known of a text that does not match a frame, or not yet."""

    NO = auto()
    """It does not match, whatever follows."""
    MORE = auto()
    """It matches as far as it goes."""


@dataclass(frozen=True, slots=True)
class Match:
    """The frame is there: it ends at `end`, and named the tool `name` if it holds a name."""

    end: int
    name: str = ""


def match(frame: Frame, text: str, start: int, names: Collection[str] = ()) -> Match | Undecided:
    """Look for a frame at `start`. The time is bounded by the frame's length, whatever the text."""
    position, name = start, ""
    for piece in frame:
        if piece is GAP:
            found = _GAP.match(text, position)
            assert found is not None
            if found.end() == len(text) and found.end() - position < MAX_GAP:
                return Undecided.MORE
            position = found.end()
        elif piece is NAME:
            found = _NAME.match(text, position)
            assert found is not None
            name = found[0]
            if found.end() == len(text) and any(known.startswith(name) for known in names):
                return Undecided.MORE
            if name not in names:
                return Undecided.NO
            position = found.end()
        else:
            taken = _take(piece.texts if isinstance(piece, OneOf) else (str(piece),), text, position)
            if isinstance(taken, Undecided):
                return taken
            position = taken
    return Match(position, name)


def _take(texts: Sequence[str], text: str, position: int) -> int | Undecided:
    """The end of the first of `texts` that stands at `position`."""
    for wanted in texts:
        if text.startswith(wanted, position):
            return position + len(wanted)
        if len(text) - position < len(wanted) and wanted.startswith(text[position:]):
            return Undecided.MORE
    return Undecided.NO


def regex(frame: Frame, name: str = "") -> str:
    """The frame as a regular expression between the slashes of a Lark terminal; `name` stands for its `NAME`."""
    return "".join(_regex(piece, name) for piece in frame)


def _regex(piece: Piece, name: str) -> str:
    if piece is GAP:
        return GAP_REGEX
    if piece is NAME:
        return name
    if isinstance(piece, OneOf):
        return f"({'|'.join(map(escape, piece.texts))})"
    return escape(str(piece))


def escape(text: str) -> str:
    """A text as a regular expression that matches it alone, also between the slashes of a Lark terminal."""
    return "".join(_ESCAPES.get(char, char) for char in text)


_ESCAPES = {char: "\\" + char for char in r"\.+*?()|[]{}^$#&-~/" + '"'} | {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
