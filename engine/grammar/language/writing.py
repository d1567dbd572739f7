"""Languages as regular expressions without assertions, which every engine takes."""

import re
from contextlib import suppress
from functools import lru_cache

from engine.grammar.language.automaton import Automaton
from engine.grammar.language.classes import NO_CHAR, written_class
from engine.grammar.language.expression import LanguageError, Languages
from engine.grammar.language.node import Node
from engine.grammar.language.sets import ranges

MAX_WRITTEN_CHARS = 20_000
MAX_SPELLED_CHARS = 2_000
"""Above that an automaton, in which what is alike stands once, is likely to be written shorter."""
MAX_ONE_STATES = 30
_START, _END = -1, -2
_TO_ESCAPE = re.compile(r"\\.|/|\n", re.DOTALL)
MAX_PARTS = 12
"""Expressions that one language is written as the intersection of."""


def written_parts(languages: Languages, node: Node) -> list[str]:
    """Anchored patterns that only the texts of a language match all of. Raises `LanguageError`."""
    parts = _conjuncts(languages, node)
    if len(parts) > MAX_PARTS:
        parts = [node]
    if len(parts) > 1:
        with suppress(LanguageError):
            text = write(languages.automaton(node, most=MAX_ONE_STATES))
            if len(text) <= MAX_SPELLED_CHARS:
                return [text]
    return sorted({_written(languages, part) for part in parts}, key=len)


def _conjuncts(languages: Languages, node: Node) -> list[Node]:
    if node.kind == "and":
        return [part for inner in node.parts for part in _conjuncts(languages, inner)]
    if node.kind == "not" and node.parts[0].kind == "or":
        return [part for inner in node.parts[0].parts for part in _conjuncts(languages, languages.negation(inner))]
    return [node]


def _written(languages: Languages, node: Node) -> str:
    """The expression as it is built, if it is short and has no complements, intersections and loops in it."""
    spelled = _spelled(node, {})
    return write(languages.automaton(node)) if spelled is None else f"^(?:{spelled})$"


def _spelled(node: Node, known: dict[int, str | None]) -> str | None:
    if id(node) in known:
        return known[id(node)]
    parts = [None] if node.kind in ("and", "not", "loop") else [_spelled(part, known) for part in node.parts]
    text = None if None in parts else _joined(node, [part for part in parts if part is not None])
    known[id(node)] = text if text is None or len(text) <= MAX_SPELLED_CHARS else None
    return known[id(node)]


def _joined(node: Node, parts: list[str]) -> str:
    match node.kind:
        case "chars":
            return written_class(node.chars)
        case "cat":
            return "".join(map(_group, parts))
        case "or":
            return "|".join(sorted(parts, key=len))
        case "star":
            return f"{_atom(parts[0])}*"
        case "repeat":
            return f"{_atom(parts[0])}{{{node.least},{node.most}}}"
    return ""


def write(automaton: Automaton) -> str:
    """An anchored pattern of what the automaton accepts, by elimination of its states. Raises `LanguageError`."""
    paths = _Paths(automaton)
    while paths.weights:
        paths.eliminate(min(paths.weights, key=lambda state: (paths.weights[state], -state)))
    return f"^(?:{paths.whole})$"


class _Paths:
    """An automaton whose moves are patterns, between states and from `_START` to `_END`."""

    def __init__(self, automaton: Automaton) -> None:
        states = range(len(automaton.moves))
        self._out: dict[int, dict[int, str]] = {state: {} for state in (_START, _END, *states)}
        self._into: dict[int, set[int]] = {state: set() for state in (_START, _END, *states)}
        self._add(_START, 0, "")
        for state in states:
            for to, chars in automaton.moves[state].items():
                self._add(state, to, written_class(ranges(chars)))
            if state in automaton.accepting:
                self._add(state, _END, "")
        self.weights = {state: self._weight(state) for state in states}
        """By state that is left, by how much the pattern grows when it goes."""

    @property
    def whole(self) -> str:
        """From start to end, when no state is left."""
        return self._out[_START].get(_END, NO_CHAR)

    def _add(self, state: int, to: int, path: str) -> None:
        found = self._out[state]
        found[to] = f"{found[to]}|{path}" if to in found else path
        self._into[to].add(state)
        if len(found[to]) > MAX_WRITTEN_CHARS:
            raise LanguageError(f"its pattern would have more than {MAX_WRITTEN_CHARS} characters")

    def _weight(self, state: int) -> int:
        """After Delgado and Morais, "Approximation to the smallest regular expression for a given regular language"."""
        out = [len(path) for to, path in self._out[state].items() if to != state]
        into = [len(self._out[other][state]) for other in self._into[state] if other != state]
        loop = len(self._out[state].get(state, ""))
        return sum(into) * (len(out) - 1) + sum(out) * (len(into) - 1) + loop * (len(into) * len(out) - 1)

    def eliminate(self, state: int) -> None:
        """Lead all paths through a state past it. Raises `LanguageError`."""
        del self.weights[state]
        out, into = self._out.pop(state), self._into.pop(state)
        loop = out.pop(state, None)
        into.discard(state)
        around = "" if loop is None else f"{_atom(loop)}*"
        for to in out:
            self._into[to].discard(state)
        for before in into:
            path = _group(self._out[before].pop(state)) + around
            for to, after in out.items():
                self._add(before, to, path + _group(after))
        for near in {*into, *out} & self.weights.keys():
            self.weights[near] = self._weight(near)


def _group(pattern: str) -> str:
    return f"(?:{pattern})" if "|" in pattern else pattern


def _atom(pattern: str) -> str:
    return pattern if len(pattern) == 1 or re.fullmatch(r"\[(?:[^\]\\]|\\.)*\]|\\.", pattern) else f"(?:{pattern})"


@lru_cache(maxsize=1024)
def in_slashes(pattern: str) -> str:
    """A pattern as it stands in Lark's notation, between slashes."""
    return f"/{_TO_ESCAPE.sub(_slash_escaped, pattern)}/"


def _slash_escaped(found: re.Match[str]) -> str:
    return {"/": r"\/", "\n": r"\n", "\\\n": r"\n"}.get(found[0], found[0])
