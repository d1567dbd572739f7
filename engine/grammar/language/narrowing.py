"""Lookaround for one character, made part of the class of the character that stands there.

`(?!-)[a-z-]{1,63}(?<!-)` is a run of letters and hyphens whose first and last are letters. That is all that most
lookaround inside a pattern is for, and it costs no more than classes do.
"""

from dataclasses import replace

from engine.grammar.language.items import Chars, Choice, Item, Items, Look, Repeat
from engine.grammar.language.sets import Ranges, common, without


def narrowed(items: Items) -> Items:
    """Items of the same meaning, with less lookaround."""
    items = tuple(map(_inside, items))
    for ahead in (False, True):  # at what stands before, then at what follows, from the end
        found: Items = ()
        for item in items:
            seen = _seen(item, ahead) if found else None
            joined = None if seen is None else _joined(found, seen, -1 if ahead else 1)
            found = (*found, item) if joined is None else joined
        items = found[::-1]
    return items


def _inside(item: Item) -> Item:
    match item:
        case Choice(parts):
            return Choice(tuple(map(narrowed, parts)))
        case Repeat() | Look():
            return replace(item, items=narrowed(item.items))
    return item


def _seen(item: Item, ahead: bool) -> Ranges | None:
    """The characters that lookaround in one direction wants; None if it is not for one character."""
    match item:
        case Look(direction, positive, (Chars(chars),)) if direction is ahead:
            return chars if positive else without(chars)
    return None


def _joined(found: Items, seen: Ranges, order: int) -> Items | None:
    """The items, the last of which must be one of these characters; None where it need not be one of a class.

    They stand in their order, or, if that is -1, in the other one.
    """
    *before, last = found
    match last:
        case Chars(chars):
            return (*before, Chars(common(chars, seen)))
        case Repeat(least, most, (Chars(chars),)) if most != 0:
            some = (Repeat(max(least - 1, 0), most and most - 1, (Chars(chars),)), Chars(common(chars, seen)))
            if least:
                return (*before, *some)
            if before and isinstance(before[-1], Chars):
                none = (Chars(common(before[-1].chars, seen)),)
                return (*before[:-1], Choice(((before[-1], *some)[::order], none)))
    return None
