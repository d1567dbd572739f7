"""What has been read before a place in a text, as far as a pattern asks."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from engine.grammar.language.expression import LanguageError, Languages
from engine.grammar.language.node import Node
from engine.grammar.language.sets import ALL, Ranges, common, ranges

MAX_STATES = 64
"""Texts that a pattern tells apart by what it looks back at."""

State = tuple[Node, ...]
"""For each text that is asked for, what would have to follow for it to be one."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place that a pattern has come to."""

    before: State
    still: frozenset[int] = frozenset()
    """Repetitions that have read nothing yet in the round they are in."""


Rest = Callable[[Place], Node]
"""The texts that may follow at a place, up to their end."""


def kept(rest: Rest) -> Rest:
    """The same, asked for once at each place."""
    known: dict[Place, Node] = {}

    def at(place: Place) -> Node:
        if place not in known:
            known[place] = rest(place)
        return known[place]

    return at


class Before:
    """The texts that one pattern asks for, all added before the first move."""

    def __init__(self, languages: Languages) -> None:
        self._languages = languages
        self._texts: list[Node] = []
        self._atoms: list[tuple[int, int]] | None = None
        self._moves: dict[State, list[tuple[Ranges, State]]] = {}
        self._reachable: dict[State, list[State]] = {}

    def ask(self, texts: Node) -> int:
        """The number under which `holds` tells whether all that stands before a place is one of the texts."""
        if texts not in self._texts:
            self._texts.append(texts)
        return self._texts.index(texts)

    @property
    def start(self) -> Place:
        """Where nothing has been read."""
        return Place(tuple(self._texts))

    def holds(self, place: Place, number: int) -> bool:
        """Whether what stands before the place is one of the texts."""
        return place.before[number].nullable

    def moves(self, place: Place, chars: Ranges) -> list[tuple[Ranges, Place]]:
        """The places behind one of the characters, each with those that lead there. Raises `LanguageError`."""
        found = [(common(part, chars), state) for part, state in self._from(place.before)]
        return [(part, Place(state)) for part, state in found if part]

    def reachable(self, place: Place) -> list[Place]:
        """All places behind one character or more. Raises `LanguageError`."""
        if place.before not in self._reachable:
            found: dict[State, None] = {}
            stack = [place.before]
            while stack:
                new = [state for _, state in self._from(stack.pop()) if state not in found]
                found |= dict.fromkeys(new)
                stack += new
            self._reachable[place.before] = list(found)
        return [Place(state) for state in self._reachable[place.before]]

    def _from(self, before: State) -> list[tuple[Ranges, State]]:
        if not before:
            return [(ALL, before)]
        if before not in self._moves:
            if len(self._moves) >= MAX_STATES:
                raise LanguageError("what it looks back at is too complex")
            if self._atoms is None:
                cuts = sorted(self._languages.cuts(*self._texts))
                self._atoms = [(low, high - 1) for low, high in pairwise(cuts)]
            found: dict[State, list[tuple[int, int]]] = {}
            for low, high in self._atoms:
                after = tuple(self._languages.derivative(node, low) for node in before)
                found.setdefault(after, []).append((low, high))
            self._moves[before] = [(ranges(part), after) for after, part in found.items()]
        return self._moves[before]
