"""Regular expressions as they are written, to languages and back.

A pattern is searched for unless anchored, and means what ECMA-262 says of it (`engine.grammar.language.ecma`).
"""

import re
import warnings
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from engine.grammar.language.ecma import NO_CHAR, SPACE, translated, written_class
from engine.grammar.language.expression import Automaton, LanguageError, Languages, Node
from engine.grammar.language.sets import BEGIN, END, Ranges, ranges, without

MAX_PATTERN_CHARS = 2_000
MAX_WRITTEN_CHARS = 20_000
_SPACES = {op.CATEGORY_SPACE: SPACE, op.CATEGORY_NOT_SPACE: without(SPACE)}
"""All that is left of Python's categories in a translation: both, for any character, or neither."""


class Reader:
    """Reads patterns into the languages of one `Languages`."""

    def __init__(self, languages: Languages) -> None:
        self._languages = languages

    def read(self, pattern: str) -> Node:
        """The texts in which the pattern is found. Raises `LanguageError`."""
        if len(pattern) > MAX_PATTERN_CHARS:
            raise LanguageError("the pattern is too long")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                parsed = parser.parse(translated(pattern))
        except (re.error, RecursionError, OverflowError) as error:
            raise LanguageError(str(error)[:100]) from None
        if parsed.state.flags & (re.IGNORECASE | re.MULTILINE | re.DOTALL | re.VERBOSE):
            raise LanguageError("flags are not followed here")
        return self._languages.searched(self._sequence(parsed))

    def _sequence(self, items: Any) -> Node:
        node = self._languages.empty
        for code, argument in reversed(list(items)):
            node = self._languages.cat(self._item(code, argument), node)
        return node

    def _item(self, code: Any, argument: Any) -> Node:
        make = self._languages
        match code:
            case op.LITERAL:
                return make.chars(((argument, argument),))
            case op.NOT_LITERAL:
                return make.chars(without(((argument, argument),)))
            case op.IN:
                return make.chars(self._class(argument))
            case op.BRANCH:
                return make.either(*(self._sequence(branch) for branch in argument[1]))
            case op.SUBPATTERN:
                _, added, removed, body = argument
                if not added and not removed:
                    return self._sequence(body)
            case op.MAX_REPEAT | op.MIN_REPEAT:
                least, most, body = argument
                return make.repeat(self._sequence(body), least, None if most is op.MAXREPEAT else most)
            case op.AT if argument in (op.AT_BEGINNING, op.AT_BEGINNING_STRING):
                return make.chars(((BEGIN, BEGIN),))
            case op.AT if argument in (op.AT_END, op.AT_END_STRING):
                return make.chars(((END, END),))
        raise LanguageError("it uses more than classes, choices, repetition and anchors")

    def _class(self, items: Any) -> Ranges:
        found: list[tuple[int, int]] = []
        negated = False
        for code, argument in items:
            match code:
                case op.NEGATE:
                    negated = True
                case op.LITERAL:
                    found.append((argument, argument))
                case op.RANGE:
                    found.append(argument)
                case op.CATEGORY if argument in _SPACES:
                    found += _SPACES[argument]
                case _:
                    raise LanguageError("it uses an unknown class")
        return without(ranges(found)) if negated else ranges(found)


def write(automaton: Automaton) -> str:
    """An anchored pattern of what the automaton accepts, by elimination of its states. Raises `LanguageError`."""
    size = len(automaton.moves)
    edges: dict[int, dict[int, str]] = {state: {} for state in range(-1, size)}
    for state, found in enumerate(automaton.moves):
        for to, chars in found.items():
            edges[state][to] = written_class(ranges(chars))
        if state in automaton.accepting:
            edges[state][size] = ""
    edges[-1][0] = ""
    edges[size] = {}
    left = set(range(size))
    while left:
        state = min(left, key=lambda number: _cost(edges, number))
        left.remove(state)
        _eliminate(edges, state)
    return f"^(?:{edges[-1].get(size, NO_CHAR)})$"


def _cost(edges: dict[int, dict[int, str]], state: int) -> int:
    into = sum(state in found for found in edges.values())
    return into * len(edges[state])


def _eliminate(edges: dict[int, dict[int, str]], state: int) -> None:
    out = edges.pop(state)
    loop = out.pop(state, None)
    around = "" if loop is None else f"{_atom(loop)}*"
    for found in edges.values():
        before = found.pop(state, None)
        if before is None:
            continue
        for to, after in out.items():
            path = _group(before) + around + _group(after)
            found[to] = f"{found[to]}|{path}" if to in found else path
            if len(found[to]) > MAX_WRITTEN_CHARS:
                raise LanguageError(f"its pattern would have more than {MAX_WRITTEN_CHARS} characters")


def _group(pattern: str) -> str:
    return f"(?:{pattern})" if "|" in pattern else pattern


def _atom(pattern: str) -> str:
    return pattern if len(pattern) == 1 or re.fullmatch(r"\[(?:[^\]\\]|\\.)*\]|\\.", pattern) else f"(?:{pattern})"
