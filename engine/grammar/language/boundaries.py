"""Boundaries of words between two classes, said by the characters on both sides.

`[a-z.]{1,6}\\b[a-z/]*` is a run that ends in a letter, and behind it a slash, or nothing; or one that ends in a full
stop, and behind it a letter. So said, what stands before need not be looked back at, however long it is.
"""

from engine.grammar.language.classes import WORD
from engine.grammar.language.items import Boundary, Chars, Choice, Edge, Item, Items, Repeat
from engine.grammar.language.sets import Ranges, common, without

MAX_PARTS = 8
"""Alternatives behind a boundary, behind each of which the rest is written once more."""
MAX_CHOICES = 2
_OTHER = without(WORD)
_Sides = list[tuple[bool, Items]]
"""What may stand on one side of a boundary: whether a word is there, and the items."""


def without_boundaries(items: Items, *, searched: bool) -> Items:
    """Items of the same meaning, with fewer boundaries; with `searched` any text may follow them, else none."""
    if items and isinstance(items[-1], Choice):
        items = (*items[:-1], Choice(tuple(without_boundaries(part, searched=searched) for part in items[-1].parts)))
    for at in range(len(items) - 1, 0, -1):
        item = items[at]
        before = _before(items[at - 1]) if isinstance(item, Boundary) else None
        behind = _behind(items[at + 1 :], searched) if before is not None else None
        if isinstance(item, Boundary) and before is not None and behind is not None:
            sides, rest = behind
            parts = [(*one, *two) for word, one in before for other, two in sides if (word != other) is item.positive]
            items = (*items[: at - 1], Choice(tuple(parts)) if parts else Chars(()), *rest)
    return items


def _before(item: Item) -> _Sides | None:
    """The last character of an item, of a word or not; None unless it is one of a class."""
    match item:
        case Chars(chars):
            return [(word, (Chars(mine),)) for word, mine in _split(chars)]
        case Repeat(least, most, (Chars(chars),)) if least:
            fewer = Repeat(least - 1, most and most - 1, (Chars(chars),))
            return [(word, (fewer, Chars(mine))) for word, mine in _split(chars)]
    return None


def _behind(items: Items, searched: bool, choices: int = MAX_CHOICES) -> tuple[_Sides, Items] | None:
    """What items may begin with, and those that stand behind it in any case; None unless it is one of a class.

    So many choices, one after the other or in each other, are gone into.
    """
    if not items:
        anything: _Sides = [(word, (Chars(chars),)) for word, chars in ((True, WORD), (False, _OTHER))]
        return [*(anything if searched else ()), (False, (Edge(True),))], ()
    match items[0]:
        case Edge(is_end=True):
            return [(False, ())], items
        case Chars(chars):
            return [(word, (Chars(mine),)) for word, mine in _split(chars)], items[1:]
        case Choice(parts) if choices and len(parts) <= MAX_PARTS:
            found = [_behind((*part, *items[1:]), searched, choices - 1) for part in parts]
            if None in found:
                return None
            return [(word, (*begun, *rest)) for sides, rest in filter(None, found) for word, begun in sides], ()
        case Repeat(least, most, (Chars(chars), *more) as inner) if most != 0:
            fewer = Repeat(max(least - 1, 0), most and most - 1, inner)
            some = [(word, (Chars(mine), *more, fewer)) for word, mine in _split(chars)]
            if least:
                return list(some), items[1:]
            none = _behind(items[1:], searched, choices)
            if none is None:
                return None
            sides, rest = none
            taken = items[1 : len(items) - len(rest)]
            return [*((word, (*begun, *taken)) for word, begun in some), *sides], rest
    return None


def _split(chars: Ranges) -> list[tuple[bool, Ranges]]:
    """Those of a word and the others, if there are any."""
    return [(word, mine) for word, own in ((True, WORD), (False, _OTHER)) if (mine := common(chars, own))]
