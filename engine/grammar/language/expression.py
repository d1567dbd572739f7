"""Regular languages as expressions with complement and intersection, and their automata by derivatives.

A derivative by a character is what may follow it (Brzozowski, "Derivatives of Regular Expressions", 1964; Owens, Reppy
and Turon, "Regular-expression derivatives re-examined", 2009). Equal expressions are one object, so that the number of
derivatives stays finite and they can be looked up.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from engine.grammar.language.sets import ALL, BEGIN, END, Ranges, holds

MAX_STATES = 200
MAX_SEARCHED = 500
MAX_WORK = 60_000


class LanguageError(ValueError):
    """A language is beyond what is followed here; the message says why."""


@dataclass(eq=False, slots=True)
class Node:
    """One expression: `kind` is chars, eps, cat, or, and, not, star, repeat or ended."""

    kind: str
    parts: tuple["Node", ...] = ()
    chars: Ranges = ()
    least: int = 0
    most: int = 0
    nullable: bool = False
    derivatives: dict[int, "Node"] = field(default_factory=dict)


class Languages:
    """Makes expressions, each but once, and asks about them."""

    def __init__(self) -> None:
        self._known: dict[Any, Node] = {}
        self._work = 0
        self._shortest: dict[int, int | None] = {}
        """By the identity of an expression."""
        self.none = self._make("chars", nullable=False)
        self.empty = self._make("eps", nullable=True)
        self.letters = self._make("star", (self._make("chars", chars=((0, END),), nullable=False),), nullable=True)

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
        return self._join("or", nodes, nothing=self.none, everything=self.negation(self.none))

    def both(self, *nodes: Node) -> Node:
        """The intersection."""
        return self._join("and", nodes, nothing=self.negation(self.none), everything=self.none)

    def _join(self, kind: str, nodes: Iterable[Node], *, nothing: Node, everything: Node) -> Node:
        found: dict[int, Node] = {}
        for node in nodes:
            found |= {id(part): part for part in (node.parts if node.kind == kind else (node,))}
        parts = sorted((node for node in found.values() if node is not nothing), key=id)
        if everything in parts:
            return everything
        if kind == "or" and self.letters in parts:
            return self.letters
        if len(parts) < 2:
            return parts[0] if parts else nothing
        nullable = (any if kind == "or" else all)(part.nullable for part in parts)
        return self._make(kind, parts, nullable=nullable)

    def negation(self, node: Node) -> Node:
        """All other texts."""
        return node.parts[0] if node.kind == "not" else self._make("not", (node,), nullable=not node.nullable)

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
            case "ended":
                return self._ended(self.derivative(parts[0], char))
        rest = self.repeat(parts[0], max(node.least - 1, 0), node.most - 1)
        return self.cat(self.derivative(parts[0], char), rest)

    def searched(self, node: Node) -> Node:
        """The texts in which an expression with `BEGIN` and `END` for `^` and `$` is found.

        Text is read as standing between any number of the one and any number of the other, so that several `^` match
        at one place.
        """
        found = self.cat(self.letters, self.cat(node, self.letters))
        starts = self._closure([found], BEGIN)
        searched = self.either(*map(self._ended, starts))
        if not searched.nullable and any(after.nullable for after in self._closure([found], BEGIN, END)):
            # An empty text begins and ends at one place, where a `$` may stand before a `^`.
            return self.either(searched, self.empty)
        return searched

    def _closure(self, nodes: list[Node], *chars: int) -> list[Node]:
        seen = {id(node): node for node in nodes}
        while nodes:
            node = nodes.pop()
            for char in chars:
                following = self.derivative(node, char)
                if id(following) not in seen:
                    seen[id(following)] = following
                    nodes.append(following)
        return list(seen.values())

    def _ended(self, node: Node) -> Node:
        nullable = any(after.nullable for after in self._closure([node], END))
        return self._make("ended", (node,), nullable=nullable)

    def shortest(self, start: Node, atoms: list[int] | None = None) -> int | None:
        """How long the shortest text is, None if there is none. Raises `LanguageError` if that takes long.

        `atoms` are characters, one of each set between which no part of the expression tells a difference.
        """
        if id(start) in self._shortest:
            return self._shortest[id(start)]
        atoms = [low for low in sorted(_cuts(start)) if low <= ALL[0][1]] if atoms is None else atoms
        found: int | None = None
        seen, level, length = {id(start)}, [start], 0
        while level:
            if any(node.nullable for node in level):
                found = length
                break
            following = {
                id(after): after for node in level for atom in atoms for after in [self.derivative(node, atom)]
            }
            level, length = [after for key, after in following.items() if key not in seen], length + 1
            seen |= following.keys()
            if len(seen) > MAX_SEARCHED:
                raise LanguageError(f"it has more than {MAX_SEARCHED} states")
        self._shortest[id(start)] = found
        return found

    def words(self, start: Node, most: int) -> list[str] | None:
        """All texts, in order; None if there are more than `most`. Raises `LanguageError`."""
        cuts = sorted(_cuts(start))
        atoms = [(low, high - 1) for low, high in pairwise(cuts) if high - 1 <= ALL[0][1]]
        alive: dict[int, list[tuple[int, int, Node]]] = {}
        found: list[str] = []
        begun = [("", start)]
        while begun:
            longer = []
            for text, node in begun:
                if node.nullable:
                    found.append(text)
                if id(node) not in alive:
                    alive[id(node)] = self._alive(node, atoms, most)
                if sum(high - low + 1 for low, high, _ in alive[id(node)]) > most:
                    return None
                longer += [(text + chr(code), after) for low, high, after in alive[id(node)]
                           for code in range(low, high + 1)]  # fmt: skip
                if len(found) + len(longer) > most:
                    return None
            begun = longer
        return sorted(found)

    def _alive(self, node: Node, atoms: list[tuple[int, int]], most: int) -> list[tuple[int, int, Node]]:
        """The characters that lead on to some text, and where to; no more than say that they are more than `most`."""
        found: list[tuple[int, int, Node]] = []
        count, lows = 0, [low for low, _ in atoms]
        for low, high in atoms:
            following = self.derivative(node, low)
            if count <= most and self.shortest(following, lows) is not None:
                found.append((low, high, following))
                count += high - low + 1
        return found

    def automaton(self, start: Node, most: int = MAX_STATES) -> "Automaton":
        """The automaton of an expression, without states that lead nowhere.

        Raises `LanguageError` where it has more than `most` states before these are left out.
        """
        cuts = sorted(_cuts(start))
        atoms = [(low, high - 1) for low, high in pairwise(cuts) if high - 1 <= ALL[0][1]]
        numbers, order = {id(start): 0}, [start]
        moves: list[dict[int, list[tuple[int, int]]]] = []
        for node in order:
            found: dict[int, list[tuple[int, int]]] = {}
            for atom in atoms:
                following = self.derivative(node, atom[0])
                if id(following) not in numbers:
                    numbers[id(following)] = len(order)
                    order.append(following)
                found.setdefault(numbers[id(following)], []).append(atom)
            moves.append(found)
            if len(order) > most:
                raise LanguageError(f"it has more than {most} states")
        accepting = {number for number, node in enumerate(order) if node.nullable}
        return Automaton(moves, accepting).trimmed()


@dataclass(frozen=True, slots=True)
class Automaton:
    """A deterministic automaton that starts in state 0: for each state, the characters to each next state."""

    moves: list[dict[int, list[tuple[int, int]]]]
    accepting: set[int]

    def trimmed(self) -> "Automaton":
        """Without moves to states from which nothing is accepted."""
        alive, grew = set(self.accepting), True
        while grew:
            more = {state for state, found in enumerate(self.moves) if state not in alive and alive & found.keys()}
            alive |= more
            grew = bool(more)
        return Automaton(
            [{to: chars for to, chars in found.items() if to in alive} for found in self.moves], self.accepting
        )

    @property
    def is_empty(self) -> bool:
        """Whether nothing is accepted."""
        return not self.accepting

    @property
    def is_endless(self) -> bool:
        """Whether there are endlessly many texts from every state on; of one that is trimmed."""
        ending: set[int] = set()
        grew = True
        while grew:
            more = {state for state, found in enumerate(self.moves) if state not in ending and found.keys() <= ending}
            ending |= more
            grew = bool(more)
        reached, stack = {0}, [0]
        while stack:
            for to in self.moves[stack.pop()]:
                if to not in reached:
                    reached.add(to)
                    stack.append(to)
        return not ending & reached


def _cuts(node: Node) -> set[int]:
    cuts, stack, seen = {0, END + 1, BEGIN}, [node], set()
    while stack:
        part = stack.pop()
        if id(part) not in seen:
            seen.add(id(part))
            stack += part.parts
            cuts |= {edge for low, high in part.chars for edge in (low, high + 1)}
    return cuts
