"""Expressions of regular languages, and what is seen of one without following it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from engine.grammar.language.sets import Ranges


@dataclass(eq=False, repr=False, slots=True)
class Node:
    """One expression: `kind` is chars, eps, cat, or, and, not, star, repeat or loop."""

    kind: str
    parts: tuple["Node", ...] = ()
    chars: Ranges = ()
    least: int = 0
    most: int = 0
    nullable: bool = False
    derivatives: dict[int, "Node"] = field(default_factory=dict)
    meaning: Callable[[], "Node"] | None = None
    """Of a loop, what it stands for, in which it may come again behind a character."""


class NotPlainError(Exception):
    """An expression has complements, intersections or loops in it."""


def least(node: Node, known: dict[int, int | None]) -> int | None:
    """How long the shortest text of an expression is, None if there is none; `known` is by identity.

    Raises `NotPlainError` where that is not seen.
    """
    if node.nullable:
        return 0
    if id(node) not in known:
        known[id(node)] = _sum(node, known)
    return known[id(node)]


def _sum(node: Node, known: dict[int, int | None]) -> int | None:
    length = 0
    while node.kind == "cat" and not node.nullable:  # what follows stands in the second part, however long it is
        first = least(node.parts[0], known)
        if first is None:
            return None
        length, node = length + first, node.parts[1]
    if node.nullable:
        return length
    match node.kind:
        case "chars":
            own = 1 if node.chars else None
        case "or":
            own = min((found for part in node.parts if (found := least(part, known)) is not None), default=None)
        case "repeat":
            once = least(node.parts[0], known)
            own = None if once is None else once * node.least
        case _:
            raise NotPlainError
    return None if own is None else length + own
