"""How many values there are at a place: arrays whose items have to differ end where none would be left.

Numbers of values are found from below, so that an array never goes on without a further item; where they are not exact,
some long arrays are not offered that could be.
"""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, count, islice, takewhile
from math import inf, prod
from operator import mul

from engine.grammar.language.expression import LanguageError
from engine.grammar.schema.faults import Unplaced
from engine.grammar.schema.strings import Strings
from engine.grammar.writing.kinds import Numbers, Texts
from engine.grammar.writing.multiples import common, has_other, is_one
from engine.grammar.writing.nodes import ArrayShape, ItemsTaken, Node, Nodes, ObjectShape
from engine.grammar.writing.terminals import Terminals

MOST = 1000
"""Values that are listed to be counted."""
MAX_ROUNDS = 12
"""Of counting; what refers to itself is counted further in each."""


@dataclass(frozen=True, slots=True)
class Extent:
    """The values at a place."""

    least: float
    """There are as many at least."""
    listed: frozenset[Hashable] | None = None
    """All of them, where they are few and none is an array or an object."""

    def may_meet(self, other: "Extent") -> bool:
        """Whether a value may be at both places."""
        return self.listed is None or other.listed is None or bool(self.listed & other.listed)


def distinct_items(nodes: Nodes, terminals: Terminals, strings: Strings) -> ItemsTaken:
    """End the arrays whose items differ where no other item is left. Raises `Unplaced`."""
    shapes = [shape for node in nodes.all if node.ends for shape in node.arrays if shape.differs]
    if not shapes:
        return "any"
    extents = _Extents(nodes, terminals, strings, shapes)
    changed = True
    while changed:
        changed = False
        extents.count()
        for shape in shapes:
            limit = extents.limit(shape)
            if limit < inf and (shape.distinct is None or limit < shape.distinct):
                shape.distinct, changed = int(limit), True
        nodes.settle()
    return "few" if extents.has_few_texts else "distinct"


class _Extents:
    def __init__(self, nodes: Nodes, terminals: Terminals, strings: Strings, shapes: Iterable[ArrayShape]) -> None:
        self._terminals = terminals
        self._strings = strings
        self._within = list(_within([node for shape in shapes for node in (*shape.prefix, shape.items)]))
        self._scalars = {id(node): self._scalar(node) for node in self._within}
        self._known: dict[int, Extent] = {}
        self.has_few_texts = any(not self._is_endless(texts) for node in self._within for texts in node.texts)
        """Whether strings may run out behind some beginning."""

    def count(self) -> None:
        """Count what is at each place, from below."""
        self._known = {id(node): Extent(0) for node in self._within}
        for _ in range(MAX_ROUNDS):
            for node in reversed(self._within):
                self._known[id(node)] = self._extent(node)

    def limit(self, shape: ArrayShape) -> float:
        """The number of items up to which another one is always left. Raises `Unplaced`."""
        items, prefix = self._known[id(shape.items)], [self._known[id(node)] for node in shape.prefix]
        limit, at_fault = inf, items
        for at, extent in enumerate(prefix):
            if extent.least <= sum(extent.may_meet(other) for other in prefix[:at]):
                limit, at_fault = at, extent
                break
        else:
            limit = len(prefix) + max(items.least - sum(items.may_meet(other) for other in prefix), 0)
        if limit < shape.least and (at_fault.listed is None or prefix):
            raise Unplaced(f"'uniqueItems' beside 'minItems' {shape.least} cannot be followed")
        return limit

    def _extent(self, node: Node) -> Extent:
        if not node.ends:
            return Extent(0, frozenset())
        scalars = self._scalars[id(node)]
        arrays = [self._array(shape) for shape in node.arrays if shape.ends()]
        objects = [self._object(shape) for shape in node.objects if shape.ends()]
        if not arrays and not objects:
            return scalars
        return Extent(scalars.least + max(arrays, default=0) + max(objects, default=0))

    def _array(self, shape: ArrayShape) -> float:
        longest, items = shape.longest(), self._known[id(shape.items)]
        if longest is None:
            if items.least == inf or not shape.differs:
                return inf if items.least else 1
            longest = len(shape.prefix) + int(items.least)
        places = [self._known[id(node)].least for node in shape.prefix[:longest]]
        places += [items.least] * min(longest - len(places), MOST)
        counts = accumulate((max(least - at * shape.differs, 0) for at, least in enumerate(places)), mul, initial=1.0)
        return max(sum(list(counts)[shape.least :]), 1)

    def _object(self, shape: ObjectShape) -> float:
        required = [self._known[id(member.node)].least for member in shape.members if member.is_required]
        if any(free.is_endless and free.node.ends for free in shape.free) and (
            shape.most is None or shape.most > len(required)
        ):
            return inf
        others = [self._known[id(m.node)].least for m in shape.members if not m.is_required and m.node.ends]
        if shape.most is not None or shape.least > len(required):
            others = []
        return prod([*required, *(least + 1 for least in others)])

    # ---- strings and numbers

    def _scalar(self, node: Node) -> Extent:
        listed: set[Hashable] | None = set(node.words)
        least = float(len(node.words))
        for group in (map(self._texts, node.texts), map(self._numbers, node.numbers)):
            extents = list(group)
            known = [extent.listed for extent in extents]
            if all(values is not None for values in known):
                values = frozenset[Hashable]().union(*(values for values in known if values is not None))
                least += len(values)
                listed = None if listed is None else listed | values
            else:
                least += max(extent.least for extent in extents)
                listed = None
        return Extent(least, None if listed is None or len(listed) > MOST else frozenset(listed))

    def _texts(self, texts: Texts) -> Extent:
        if texts.words is None and not texts.patterns and (texts.most is None or texts.most > 0):
            return Extent(inf) if texts.most is None or texts.least <= texts.most else Extent(0, frozenset())
        if self._is_endless(texts):
            return Extent(inf)
        try:
            words = self._terminals.words(texts)
            if words is None:
                words = self._strings.listed(texts.patterns, texts.least, texts.most, MOST)
        except (LanguageError, Unplaced):
            return Extent(1)  # or it would not be there
        return Extent(MOST) if words is None else Extent(len(words), frozenset(("text", word) for word in words))

    def _is_endless(self, texts: Texts) -> bool:
        if texts.words is not None or texts.most is not None:
            return False
        return not texts.patterns or self._strings.is_endless(texts.patterns, [])

    def _numbers(self, numbers: Numbers) -> Extent:
        if numbers.values is not None:
            return _these(value for value in map(Fraction, numbers.values) if is_one(value, numbers))
        bounds, multiples = numbers.bounds, numbers.multiples
        if numbers.types == {"integer"}:
            multiples = (*multiples, Fraction(1))
        if numbers.others and not has_other(numbers):
            return Extent(0, frozenset())
        if bounds.low is None or bounds.high is None:
            return Extent(inf)
        if not multiples:
            alone = [bounds.low] if is_one(bounds.low, numbers) else []
            return Extent(inf) if bounds.low < bounds.high else _these(alone)
        step, high = common(multiples), bounds.high
        first = -(-bounds.low // step)
        values = list(islice(takewhile(lambda value: value <= high, (at * step for at in count(first))), MOST + 3))
        found = frozenset(value for value in values if is_one(value, numbers))
        return Extent(len(found), found if len(values) <= MOST else None)


def _these(values: Iterable[Fraction]) -> Extent:
    listed = frozenset(values)
    return Extent(len(listed), listed) if len(listed) <= MOST else Extent(MOST)


def _within(nodes: list[Node]) -> Iterator[Node]:
    """The places and all that are inside of them, each once."""
    waiting, seen = list(nodes), set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        waiting += [place for shape in node.arrays for place in (*shape.prefix, shape.items)]
        waiting += [member.node for shape in node.objects for member in shape.members]
        waiting += [free.node for shape in node.objects for free in shape.free]
