"""Patterns that are searched for: a text that makes any text one in which they are found."""

from engine.grammar.language.boundaries import without_boundaries
from engine.grammar.language.classes import WORD
from engine.grammar.language.expression import LanguageError
from engine.grammar.language.items import Boundary, Chars, Choice, Edge, Item, Items, Repeat, parsed
from engine.grammar.language.sets import Ranges, common, holds, ranges, without

MAX_CHARS = 200
_PLAIN: Ranges = ranges([(33, 33), (35, 91), (93, 126)])
"""Printable, and not escaped in JSON."""
_IN_TEXT = without(((0xD800, 0xDFFF),))


def fulfilling(pattern: str) -> str | None:
    """A text behind which the pattern is found whatever stands before, if that does not end in a character of a word.

    None where none is seen at once.
    """
    if pattern.startswith("^") and "|" not in pattern:
        return None
    try:
        return _at_the_end(without_boundaries(parsed(pattern), searched=False))
    except LanguageError:
        return None


def _at_the_end(items: Items) -> str | None:
    match items:
        case (*before, Choice(parts)):
            return next((text for part in parts if (text := _at_the_end((*before, *part))) is not None), None)
        case (*before, Edge(is_end=True)):
            return _at_the_end(tuple(before))
        case (Boundary(positive), *behind):
            text = _example(tuple(behind))
            return text if text and holds(WORD, ord(text[0])) is positive else None
    return _example(items)


def _example(items: Items) -> str | None:
    """A text that the items match, whatever stands around it; None where some of them assert something."""
    text = ""
    for item in items:
        piece = _piece(item)
        if piece is None or len(text) + len(piece) > MAX_CHARS:
            return None
        text += piece
    return text


def _piece(item: Item) -> str | None:
    match item:
        case Chars(chars):
            found = common(chars, _PLAIN) or common(chars, _IN_TEXT)
            return chr(found[0][0]) if found else None
        case Choice(parts):
            return next((text for part in parts if (text := _example(part)) is not None), None)
        case Repeat(least=0):
            return ""
        case Repeat(least, _, inner) if least <= MAX_CHARS:
            once = _example(inner)
            return None if once is None else once * least
    return None
