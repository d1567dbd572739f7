"""Regular languages as expressions with complement and intersection, and their automata by derivatives.

A derivative by a character is what may follow it (Brzozowski, "Derivatives of Regular Expressions", 1964; Owens, Reppy
and Turon, "Regular-expression derivatives re-examined", 2009). Equal expressions are one object, so that the number of
derivatives stays finite and they can be looked up.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

from engine.grammar.language.automaton import Automaton
from engine.grammar.language.node import Node, NotPlainError, least
from engine.grammar.language.sets import ALL, LAST, Ranges, holds, without

MAX_STATES = 200
MAX_SEARCHED = 500
MAX_WORK = 60_000


class LanguageError(ValueError):
    """A language is beyond what is followed here; the message says why."""


class Languages:
    """Makes expressions, each but once, and asks about them."""

    def __init__(self) -> None:
        self._known: dict[Any, Node] = {}
        self._empty: dict[int, bool] = {}
        self._work = 0
        self._shortest: dict[int, int | None] = {}
        self._first: dict[int, frozenset[int]] = {}
        self._leasts: dict[int, int | None] = {}
        """By the identity of an expression."""
        self.none = self._make("chars", nullable=False)
        self.empty = self._make("eps", nullable=True)
        self.letters = self._make("star", (self._make("chars", chars=ALL, nullable=False),), nullable=True)

    def _make(self, kind: str, parts: Iterable[Node] = (), chars: Ranges = (), least: int = 0, most: int = 0, *,
              nullable: bool) -> Node:  # fmt: skip
        parts = tuple(parts)
        key = (kind, tuple(map(id, parts)), chars, least, most)
        if key not in self._known:
            self._known[key] = Node(kind, parts, chars, least, most, nullable)
        return self._known[key]

    def chars(self, chars: Ranges) -> Node:
        """One character of a set."""
        return self._make("chars", chars=chars, nullable=False)

    def cat(self, one: Node, two: Node) -> Node:
        """One after the other."""
        if self.none in (one, two):
            return self.none
        if one is self.empty or two is self.empty:
            return two if one is self.empty else one
        if two is self.letters and one.nullable:
            return two
        if one.kind == "cat":
            return self.cat(one.parts[0], self.cat(one.parts[1], two))
        return self._make("cat", (one, two), nullable=one.nullable and two.nullable)

    def either(self, *nodes: Node) -> Node:
        """The union."""
        return self._join("or", nodes, nothing=self.none, everything=self.letters)

    def both(self, *nodes: Node) -> Node:
        """The intersection."""
        return self._join("and", nodes, nothing=self.letters, everything=self.none)

    def _join(self, kind: str, nodes: Iterable[Node], *, nothing: Node, everything: Node) -> Node:
        found: dict[int, Node] = {}
        for node in nodes:
            found |= {id(part): part for part in (node.parts if node.kind == kind else (node,))}
        parts = sorted((node for node in found.values() if node is not nothing), key=id)
        if everything in parts:
            return everything
        if len(parts) < 2:
            return parts[0] if parts else nothing
        if kind == "and" and self.empty in parts:
            return self.empty if all(part.nullable for part in parts) else self.none
        nullable = (any if kind == "or" else all)(part.nullable for part in parts)
        return self._make(kind, parts, nullable=nullable)

    def negation(self, node: Node) -> Node:
        """All other texts."""
        if node in (self.none, self.letters):
            return self.letters if node is self.none else self.none
        if (
            node.kind == "cat"
            and node.parts[1] is self.letters
            and (shorter := self._shorter(node.parts[0])) is not None
        ):
            return shorter
        return node.parts[0] if node.kind == "not" else self._make("not", (node,), nullable=not node.nullable)

    def _shorter(self, run: Node) -> Node | None:
        """The texts that do not begin with a run of so many characters of a set; None for another expression."""
        if run.kind != "repeat" or run.least != run.most or run.parts[0].kind != "chars":
            return None
        others = self.cat(self.chars(without(run.parts[0].chars)), self.letters)
        return self.cat(self.repeat(run.parts[0], 0, run.most - 1), self.either(self.empty, others))

    def star(self, node: Node) -> Node:
        """Any number, one after the other."""
        if node in (self.none, self.empty):
            return self.empty
        return node if node.kind == "star" else self._make("star", (node,), nullable=True)

    def repeat(self, node: Node, least: int, most: int | None) -> Node:
        """At least and at most so many, one after the other."""
        least = 0 if node.nullable else least
        if most is None:
            return self.cat(self.repeat(node, least, least), self.star(node))
        if most == 0 or node is self.empty:
            return self.empty
        if least == most == 1:
            return node
        return self._make("repeat", (node,), least=least, most=most, nullable=least == 0)

    def loop(self, meaning: Callable[[], Node], *, nullable: bool) -> Node:
        """An expression that may be part of itself, behind a character. `meaning` is asked for when it is needed."""
        key = ("loop", len(self._known))  # each is one of its own
        self._known[key] = Node("loop", nullable=nullable, meaning=meaning)
        return self._known[key]

    def unrolled(self, node: Node) -> tuple[Node, ...]:
        """The parts of an expression, of a loop what it stands for."""
        if node.meaning is not None:
            node.parts, node.meaning = (node.meaning(),), None
        return node.parts

    def derivative(self, node: Node, char: int) -> Node:
        """What may follow `char`. Raises `LanguageError`."""
        if char not in node.derivatives:
            self._work += 1
            if self._work > MAX_WORK:
                raise LanguageError("it is too complex")
            node.derivatives[char] = self._derive(node, char)
        return node.derivatives[char]

    def _derive(self, node: Node, char: int) -> Node:
        parts = node.parts
        match node.kind:
            case "chars":
                return self.empty if holds(node.chars, char) else self.none
            case "eps":
                return self.none
            case "cat":
                first = self.cat(self.derivative(parts[0], char), parts[1])
                return self.either(first, self.derivative(parts[1], char)) if parts[0].nullable else first
            case "or":
                return self.either(*(self.derivative(part, char) for part in parts))
            case "and":
                return self.both(*(self.derivative(part, char) for part in parts))
            case "not":
                return self.negation(self.derivative(parts[0], char))
            case "star":
                return self.cat(self.derivative(parts[0], char), node)
            case "loop":
                return self.derivative(self.unrolled(node)[0], char)
        rest = self.repeat(parts[0], max(node.least - 1, 0), node.most - 1)
        return self.cat(self.derivative(parts[0], char), rest)

    def is_empty(self, start: Node) -> bool:
        """Whether there is no such text. Raises `LanguageError`."""
        if id(start) not in self._empty:
            self._empty[id(start)] = self._finds_none(start)
        return self._empty[id(start)]

    def _finds_none(self, start: Node) -> bool:
        """Looks until it finds one, unless that is seen at once."""
        if start.nullable:
            return False
        with suppress(NotPlainError):
            return least(start, self._leasts) is None
        seen, stack = {id(start)}, [start]
        while stack:
            node = stack.pop()
            if node.nullable:
                return False
            for char, _ in self.steps(node):
                following = self.derivative(node, char)
                if id(following) not in seen:
                    seen.add(id(following))
                    stack.append(following)
        return True

    def steps(self, node: Node) -> list[tuple[int, int]]:
        """Ranges of characters that an expression does not tell apart as the first of a text."""
        return [(low, high - 1) for low, high in pairwise(sorted({0, LAST + 1, *self._edges(node)}))]

    def _edges(self, node: Node) -> frozenset[int]:
        """Where ranges of characters begin, or end, that may come first (Owens, Reppy and Turon, section 4.2)."""
        if id(node) not in self._first:
            self._first[id(node)] = self._edges_within(node)
        return self._first[id(node)]

    def _edges_within(self, node: Node) -> frozenset[int]:
        edges: set[int] = set()
        while node.kind == "cat":  # what follows stands in the second part, however long it is
            edges |= self._edges(node.parts[0])
            if not node.parts[0].nullable:
                return frozenset(edges)
            node = node.parts[1]
        if node.kind == "loop":
            return frozenset(edges | self.cuts(node))
        for low, high in node.chars:
            edges |= {low, high + 1}
        return frozenset(edges).union(*map(self._edges, node.parts))

    def shortest(self, start: Node) -> int | None:
        """How long the shortest text is, None if there is none. Raises `LanguageError` if that takes long."""
        if id(start) not in self._shortest:
            self._shortest[id(start)] = self._length(start)
        return self._shortest[id(start)]

    def _length(self, start: Node) -> int | None:
        with suppress(NotPlainError):
            return least(start, self._leasts)
        seen, level, length = {id(start)}, [start], 0
        while level:
            if any(node.nullable for node in level):
                return length
            following = {
                id(after): after
                for node in level
                for low, _ in self.steps(node)
                for after in [self.derivative(node, low)]
            }
            level, length = [after for key, after in following.items() if key not in seen], length + 1
            seen |= following.keys()
            if len(seen) > MAX_SEARCHED:
                raise LanguageError(f"it has more than {MAX_SEARCHED} states")
        return None

    def cuts(self, *nodes: Node) -> set[int]:
        """Where ranges of characters begin that expressions tell apart, and where the last one ends."""
        cuts = {0, LAST + 1}
        for node in self._within(nodes):
            cuts |= {edge for low, high in node.chars for edge in (low, high + 1)}
        return cuts

    def _within(self, nodes: Iterable[Node]) -> Iterator[Node]:
        """All expressions that these are made of, each once."""
        stack, seen = list(nodes), set()
        while stack:
            node = stack.pop()
            if id(node) not in seen:
                seen.add(id(node))
                stack += self.unrolled(node)
                yield node

    def automaton(self, start: Node, most: int = MAX_STATES) -> Automaton:
        """The automaton of an expression, of at most `most` states; moves that lead nowhere are left out.

        Raises `LanguageError`.
        """
        numbers, order = {id(start): 0}, [start]
        moves: list[dict[int, list[tuple[int, int]]]] = []
        for node in order:
            found: dict[int, list[tuple[int, int]]] = {}
            for step in self.steps(node):
                following = self.derivative(node, step[0])
                if id(following) not in numbers:
                    numbers[id(following)] = len(order)
                    order.append(following)
                found.setdefault(numbers[id(following)], []).append(step)
            moves.append(found)
            if len(order) > most:
                raise LanguageError(f"it has more than {most} states")
        accepting = {number for number, node in enumerate(order) if node.nullable}
        return Automaton(moves, accepting).trimmed()
