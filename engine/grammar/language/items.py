"""Regular expressions as they are written, taken apart.

Groups are opened, flags applied and classes made sets, so that what is left is what a language is made of.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from engine.grammar.language.classes import SPACE, folded
from engine.grammar.language.ecma import Translation, translated
from engine.grammar.language.expression import LanguageError
from engine.grammar.language.remembered import remembered
from engine.grammar.language.sets import Ranges, ranges, without

MAX_PATTERN_CHARS = 2_000
_SPACES = {op.CATEGORY_SPACE: SPACE, op.CATEGORY_NOT_SPACE: without(SPACE)}
"""All that is left of Python's categories in a translation: both, for any character, or neither."""
_MAY_LOOK = re.compile(r"\(\?<?[=!]|\\[bB]")
_MAY_ASSERT = re.compile(r"[$^]|\(\?<?[=!]|\\[bB]")
_PROPERTY = re.compile(r"\\[pP](?:\{[^{}]*\}|[A-Z])")
_MALFORMED = re.compile(
    "missing|unbalanced|untermin|nothing to repeat|min repeat|bad character range|unknown extension|unexpected end"
    r"|bad escape \(end"
)
_EDGES = {op.AT_BEGINNING: False, op.AT_BEGINNING_STRING: False, op.AT_END: True, op.AT_END_STRING: True}
_BOUNDARIES = {op.AT_BOUNDARY: True, op.AT_NON_BOUNDARY: False}


@dataclass(frozen=True, slots=True)
class Chars:
    """A character of a set."""

    chars: Ranges


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several."""

    parts: tuple["Items", ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """At least and at most so many; `most` is None where there is no end to them."""

    least: int
    most: int | None
    items: "Items"


@dataclass(frozen=True, slots=True)
class Edge:
    """`^`, or `$`."""

    is_end: bool


@dataclass(frozen=True, slots=True)
class Boundary:
    """`\\b`, or `\\B` if it is not positive."""

    positive: bool


@dataclass(frozen=True, slots=True)
class Look:
    """A lookahead, or a lookbehind."""

    ahead: bool
    positive: bool
    items: "Items"


Item = Chars | Choice | Repeat | Edge | Boundary | Look
Items = tuple[Item, ...]


class _SpelledOut(Translation):
    """A pattern without properties of Unicode, of which Python's knows none."""

    def property_text(self, members: Ranges, properties: Sequence[str], *, negated: bool = False) -> str:
        return self.spelled_out(members, properties, negated=negated)


@remembered
def parsed(pattern: str) -> Items:
    """The items of a pattern, in ECMA-262's words. Raises `LanguageError`."""
    if len(pattern) > MAX_PATTERN_CHARS:
        raise LanguageError("the pattern is too long")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = parser.parse(_SpelledOut(translated(pattern)).text())
        flags = _known(found.state.flags & ~re.UNICODE)
        return tuple(_items(found, bool(flags & re.IGNORECASE)))
    except RecursionError:
        raise LanguageError("it is nested too deeply") from None
    except (re.error, OverflowError) as error:
        raise LanguageError(f"it is not a pattern that is known here: {str(error)[:100]}") from None


def is_malformed(pattern: str) -> bool:
    """Whether it is surely no regular expression at all."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parser.parse(_PROPERTY.sub("x", translated(pattern[:MAX_PATTERN_CHARS])))
    except (re.error, OverflowError) as error:
        return len(pattern) <= MAX_PATTERN_CHARS and bool(_MALFORMED.match(str(error)))
    except RecursionError:
        pass
    return False


def looks_around(pattern: str) -> bool:
    """Whether there is lookaround, or a boundary of words, in a pattern. Raises `LanguageError`, if it is none."""
    return bool(_MAY_LOOK.search(pattern)) and _holds(parsed(pattern), Look | Boundary)


def asserts(pattern: str) -> bool:
    """Whether there are anchors, lookaround or boundaries in a pattern. Raises `LanguageError`, if it is none."""
    return bool(_MAY_ASSERT.search(pattern)) and _holds(parsed(pattern), Look | Boundary | Edge)


def _holds(items: Items, kind: Any) -> bool:
    for item in items:
        inner = item.parts if isinstance(item, Choice) else (item.items,) if isinstance(item, Repeat | Look) else ()
        if isinstance(item, kind) or any(_holds(part, kind) for part in inner):
            return True
    return False


def _known(flags: int) -> int:
    if flags & ~re.IGNORECASE:
        raise LanguageError("flags are not followed here, but for i and s")
    return flags


def _items(found: Any, ignores_case: bool) -> Iterator[Item]:
    for code, argument in found:
        match code:
            case op.SUBPATTERN:
                _, added, removed, body = argument
                yield from _items(body, bool(_known(added)) or (ignores_case and not _known(removed)))
            case op.BRANCH:
                yield Choice(tuple(tuple(_items(branch, ignores_case)) for branch in argument[1]))
            case op.MAX_REPEAT | op.MIN_REPEAT:
                least, most, body = argument
                yield Repeat(least, None if most is op.MAXREPEAT else most, tuple(_items(body, ignores_case)))
            case op.ASSERT | op.ASSERT_NOT:
                yield Look(argument[0] > 0, code is op.ASSERT, tuple(_items(argument[1], ignores_case)))
            case op.AT if argument in _EDGES:
                yield Edge(_EDGES[argument])
            case op.AT if argument in _BOUNDARIES:
                yield Boundary(_BOUNDARIES[argument])
            case op.GROUPREF | op.GROUPREF_EXISTS:
                raise LanguageError("a reference to a group is not supported")
            case _:
                yield Chars(_chars(code, argument, ignores_case))


def _chars(code: Any, argument: Any, ignores_case: bool) -> Ranges:
    match code:
        case op.LITERAL | op.NOT_LITERAL:
            found: Iterable[tuple[int, int]] = [(argument, argument)]
        case op.IN:
            found = [pair for part in argument if part[0] is not op.NEGATE for pair in _members(*part)]
        case _:
            raise LanguageError("it uses more than classes, choices, repetition, anchors and lookaround")
    chars = folded(ranges(found)) if ignores_case else ranges(found)
    return without(chars) if code is op.NOT_LITERAL or (code is op.IN and argument[0][0] is op.NEGATE) else chars


def _members(code: Any, argument: Any) -> Ranges:
    match code:
        case op.LITERAL:
            return ((argument, argument),)
        case op.RANGE:
            return (argument,)
        case op.CATEGORY if argument in _SPACES:
            return _SPACES[argument]
    raise LanguageError("it uses an unknown class")
