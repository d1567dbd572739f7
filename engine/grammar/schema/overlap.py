"""Proofs that no value is accepted by both of two schemas, so that `oneOf` may be read as `anyOf`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from engine.grammar.language.expression import LanguageError
from engine.grammar.schema.document import Document
from engine.grammar.schema.faults import Budget, SchemaFault
from engine.grammar.schema.strings import Strings
from engine.grammar.schema.values import ALL_TYPES, NUMBER, Schema, identity, type_of

MAX_REFERENCES = 12
MAX_LEVELS = 5
MAX_CASES = 24


@dataclass(frozen=True, slots=True)
class Facts:
    """Some of what is true of every value that a schema accepts."""

    types: frozenset[str] = ALL_TYPES
    values: tuple[Any, ...] | None = None
    required: frozenset[str] = frozenset()
    members: tuple[tuple[str, Schema], ...] = ()
    allowed: frozenset[str] | None = None
    """Names beside which there are none."""
    items: tuple[Schema, ...] = ()
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Of a number, a string's length, the count of items: least and most. Exclusive bounds count as inclusive ones."""
    patterns: tuple[str, ...] = ()


class Overlap:
    """Compares schemas of one document."""

    def __init__(self, document: Document, strings: Strings, budget: Budget) -> None:
        self._document = document
        self._strings = strings
        self._budget = budget
        self._known: dict[tuple[int, int], tuple[Schema, list[Facts]]] = {}
        """By the identity of a schema, which is kept with them, and by references left."""

    def types(self, schema: Schema) -> frozenset[str]:
        """Types outside of which nothing is accepted."""
        return frozenset().union(*(facts.types for facts in self._cases(schema, MAX_REFERENCES)))

    def names(self, schema: Schema) -> frozenset[str]:
        """Members that the schema names."""
        return frozenset(name for facts in self._cases(schema, MAX_REFERENCES) for name, _ in facts.members)

    def disjoint(self, one: Schema, two: Schema, levels: int = MAX_LEVELS) -> bool:
        """Whether it is proven that no value is accepted by both."""
        ours, theirs = self._cases(one, MAX_REFERENCES), self._cases(two, MAX_REFERENCES)
        return all(self._apart(a, b, levels) for a in ours for b in theirs)

    def _apart(self, a: Facts, b: Facts, levels: int) -> bool:
        self._budget.spend()
        if a.values is not None and b.values is not None:
            known = {identity(value) for value in a.values}
            if not any(identity(value) in known for value in b.values):
                return True
        for facts, others in ((a, b), (b, a)):
            if facts.values is not None:
                return all(self._refuted(others, value) for value in facts.values)
        return all(self._apart_in(a, b, kind, levels) for kind in a.types & b.types)

    def _apart_in(self, a: Facts, b: Facts, kind: str, levels: int) -> bool:
        measure = "number" if kind in NUMBER else kind
        if measure in a.ranges and measure in b.ranges:
            (low, high), (low2, high2) = a.ranges[measure], b.ranges[measure]
            if high < low2 or high2 < low:
                return True
        if kind == "string":
            return any(self._strings.disjoint(one, two) for one in a.patterns for two in b.patterns)
        if levels and kind == "object":
            return any(self._apart_at(a, b, name, levels) for name in sorted(a.required | b.required))
        if levels and kind == "array":
            some = a.ranges.get("array", (0, 0))[0] >= 1 or b.ranges.get("array", (0, 0))[0] >= 1
            return some and any(self.disjoint(x, y, levels - 1) for x in a.items for y in b.items)
        return False

    def _apart_at(self, a: Facts, b: Facts, name: str, levels: int) -> bool:
        """Whether a member that one of them requires keeps them apart."""
        if any(facts.allowed is not None and name not in facts.allowed for facts in (a, b)):
            return True
        ours = [schema for member, schema in a.members if member == name]
        theirs = [schema for member, schema in b.members if member == name]
        return any(self.disjoint(x, y, levels - 1) for x in ours or [True] for y in theirs or [True])

    def _refuted(self, facts: Facts, value: Any) -> bool:
        kind = type_of(value)
        if kind not in facts.types:
            return True
        if facts.values is not None and identity(value) not in {identity(other) for other in facts.values}:
            return True
        measure = "number" if kind in NUMBER else kind
        if measure in facts.ranges:
            size = value if kind in NUMBER else len(value)
            low, high = facts.ranges[measure]
            if not low <= size <= high:
                return True
        if kind == "string":
            try:
                return not all(self._strings.finds(pattern, value) for pattern in facts.patterns)
            except LanguageError:
                return False
        if kind == "object":
            allowed = facts.allowed
            return bool(facts.required - value.keys()) or (allowed is not None and bool(value.keys() - allowed))
        return False

    def _cases(self, schema: Schema, references: int) -> list[Facts]:
        """Facts of which at least one holds of each accepted value; no facts for what accepts nothing."""
        if isinstance(schema, bool):
            return [Facts()] if schema else []
        if (id(schema), references) not in self._known:
            self._known[id(schema), references] = schema, self._new_cases(schema, references)
        return self._known[id(schema), references][1]

    def _new_cases(self, schema: Schema, references: int) -> list[Facts]:
        self._budget.spend()
        keys = self._document.keywords(schema, "")
        cases = [_plain(keys)]
        for group in self._groups(keys, references):
            joined = [both for one in cases for two in group if (both := _join(one, two)) is not None]
            if len(joined) <= MAX_CASES:
                cases = joined
        return cases

    def _groups(self, keys: dict[str, Any], references: int) -> Iterator[list[Facts]]:
        if "$ref" in keys and references:
            try:
                yield self._cases(self._document.resolve(keys, "")[0], references - 1)
            except SchemaFault:
                return
        if references:
            for part in keys.get("allOf", ()):
                yield self._cases(part, references - 1)
            for name in ("anyOf", "oneOf"):
                if name in keys:
                    yield [facts for part in keys[name] for facts in self._cases(part, references - 1)]


def _plain(keys: dict[str, Any]) -> Facts:
    ranges: dict[str, tuple[float, float]] = {}
    lows = {"number": ("minimum", "exclusiveMinimum"), "string": ("minLength",), "array": ("minItems",)}
    highs = {"number": ("maximum", "exclusiveMaximum"), "string": ("maxLength",), "array": ("maxItems",)}
    for measure in lows:
        low = max((keys[name] for name in lows[measure] if name in keys), default=float("-inf"))
        high = min((keys[name] for name in highs[measure] if name in keys), default=float("inf"))
        ranges[measure] = (low, high)
    properties = keys.get("properties", {})
    closed = keys.get("additionalProperties") is False and not keys.get("patternProperties")
    values = tuple(keys["enum"]) if "enum" in keys else None
    types = keys.get("type", ALL_TYPES)
    if values is not None:
        values = tuple(value for value in values if type_of(value) in types)
        types = frozenset(type_of(value) for value in values)
    return Facts(
        types,
        values,
        frozenset(keys.get("required", ())),
        tuple(properties.items()),
        frozenset(name for name, schema in properties.items() if schema is not False) if closed else None,
        (keys["items"],) if "items" in keys and "prefixItems" not in keys else (),
        ranges,
        (keys["pattern"],) if "pattern" in keys else (),
    )


def _join(a: Facts, b: Facts) -> Facts | None:
    """The facts of values that both hold of; None if there are no such values."""
    types, values = a.types & b.types, a.values
    if values is None or b.values is None:
        values = b.values if values is None else values
    else:
        known = {identity(value) for value in b.values}
        values = tuple(value for value in values if identity(value) in known)
    if values is not None:
        values = tuple(value for value in values if type_of(value) in types)
    if not types or values == ():
        return None
    allowed = a.allowed if b.allowed is None else b.allowed if a.allowed is None else a.allowed & b.allowed
    ranges = {
        measure: (max(a.ranges[measure][0], b.ranges[measure][0]), min(a.ranges[measure][1], b.ranges[measure][1]))
        if measure in a.ranges and measure in b.ranges
        else a.ranges.get(measure) or b.ranges[measure]
        for measure in a.ranges.keys() | b.ranges.keys()
    }
    return Facts(
        types=types,
        values=values,
        required=a.required | b.required,
        members=a.members + b.members,
        allowed=allowed,
        items=a.items + b.items,
        ranges=ranges,
        patterns=a.patterns + b.patterns,
    )
