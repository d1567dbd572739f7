"""What is left out of a schema that is not strict, because it cannot be followed.

A keyword is left out at its place, and its pointer noted. The schema then never accepts less than before: keywords that
speak of what another one leaves over go with it. Below `not` this would turn round, so where a keyword's complement
cannot be said, the one around it is left out: `not`, `if`, or of `oneOf` that it is only one, which leaves `anyOf`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

from engine.grammar.language.items import is_malformed
from engine.grammar.schema.faults import SchemaFault, Unfollowable, because, escape

_GO_WITH = {
    "properties": ("additionalProperties", "unevaluatedProperties"),
    "patternProperties": ("additionalProperties", "unevaluatedProperties"),
    "prefixItems": ("items",),
    "contains": ("minContains", "maxContains"),
    "if": ("then", "else"),
}
"""Keyword → those that would come to refuse more without it, or to mean nothing."""
PatternFault = Callable[[str], str | None]
"""Why a pattern cannot be followed, None if it can."""


class Degree(IntEnum):
    """How far a schema is followed; each member goes less far than the one before."""

    KEYWORDS = 0
    """But for keywords that rewriting cannot follow."""
    PATTERNS = 1
    """And but for patterns that cannot be followed, each of which is tried."""
    POSITIVE = 2
    """And without any complement."""
    TYPE = 3
    """Only its outermost type."""


class Relaxing:
    """What is left out of one schema document; nothing is if it is `strict`."""

    def __init__(self, *, strict: bool = True, pattern_fault: PatternFault = lambda pattern: None) -> None:
        self.degree = Degree.KEYWORDS
        self.strict = strict
        self._pattern_fault = pattern_fault
        self._faults: dict[str, str | None] = {}
        self._told: dict[str, None] = {}
        self._left_out: dict[str, None] = {}

    def again(self) -> "Relaxing":
        """One of the same degree that leaves out what this was told to, for a part of the document alone."""
        other = Relaxing(strict=self.strict, pattern_fault=self._pattern_fault)
        other.degree, other._told, other._faults = self.degree, self._told, self._faults
        return other

    def coarsen(self, least: Degree = Degree.KEYWORDS) -> bool:
        """Follow less from now on, at most as far as `least`; False where there is nothing less."""
        if self.strict or self.degree is Degree.TYPE:
            return False
        self.degree = max(Degree(self.degree + 1), least)
        return True

    def tell(self, fault: Unfollowable) -> bool:
        """Leave a keyword out from now on, wherever it stands; False if it was to be left out before."""
        pointer = _pointer(fault.at, fault.keyword)
        if self.strict or pointer in self._told:
            return False
        self._told[pointer] = None
        return True

    def pointers(self) -> list[str]:
        """What was left out, as JSON pointers: the empty one for all but the outermost type.

        Nothing is named that stands within something that is named, but for choices of a `oneOf`, which are followed.
        """
        if self.degree is Degree.TYPE:
            return [""]
        return [pointer for pointer in self._left_out if not any(map(self._drops, _above(pointer)))]

    def _drops(self, pointer: str) -> bool:
        return pointer in self._left_out and not pointer.endswith("/oneOf")

    # ---- what rewriting asks

    def note(self, fault: Unfollowable, *, at: str | None = None, keyword: str | None = None) -> None:
        """The keyword at fault is left out, or the one that is said. Raises the fault where nothing may be."""
        if self.strict:
            raise fault
        self._left_out[_pointer(fault.at if at is None else at, keyword or fault.keyword)] = None

    def leaves_out(self, at: str, keyword: str) -> bool:
        """Whether this keyword is known to be left out."""
        return _pointer(at, keyword) in self._left_out

    def followed(self, schema: dict[str, Any], at: str) -> dict[str, Any]:
        """A schema as it came, without the keywords that are known to be left out."""
        for keyword in list(schema) if self._told or self._left_out else ():
            pointer = _pointer(at, keyword)
            if pointer in self._told or pointer in self._left_out:
                self._left_out[pointer] = None
                schema = _without(schema, keyword)
        return schema

    def relaxed(self, keys: dict[str, Any], fault: Unfollowable, at: str) -> dict[str, Any]:
        """The keywords of the schema at `at` without the one at fault. Raises the fault if it is none of these."""
        if fault.at != at or fault.keyword not in keys or self.leaves_out(at, fault.keyword):
            raise fault
        self.note(fault)
        return _without(keys, fault.keyword)

    def check_complement(self, schema: dict[str, Any], at: str) -> None:
        """Raise `Unfollowable` for a schema whose complement is not to be said."""
        if self.degree >= Degree.POSITIVE:
            raise Unfollowable(at, "not", "is left out")
        for keyword in schema if self._told else ():
            if _pointer(at, keyword) in self._told:
                raise Unfollowable(at, keyword, "is left out")

    def check_pattern(self, pattern: str, at: str, keyword: str) -> None:
        """Where each pattern is tried, raise `Unfollowable` for one that cannot be followed.

        Raises `SchemaFault` for what is no pattern at all, which is refused though it may be left out.
        """
        if self.degree < Degree.PATTERNS:
            return
        if pattern not in self._faults:
            self._faults[pattern] = self._pattern_fault(pattern)
        if (why := self._faults[pattern]) is None:
            return
        fault = Unfollowable(at, keyword, because(why))
        raise SchemaFault(fault.pointer, fault.problem) if is_malformed(pattern) else fault

    @contextmanager
    def around(self, at: str, keyword: str) -> Iterator[None]:
        """What cannot be followed inside is a fault of this keyword, unless all is to be refused by its own name."""
        try:
            yield
        except Unfollowable as fault:
            if self.strict:
                raise
            raise Unfollowable(at, keyword, because(str(fault))) from None


def _without(keys: dict[str, Any], keyword: str) -> dict[str, Any]:
    """Keywords of a schema without one of them; `oneOf` stays, to be read as `anyOf`."""
    if keyword == "oneOf":
        return keys
    gone = {keyword, *_GO_WITH.get(keyword, ())}
    return {name: value for name, value in keys.items() if name not in gone}


def _pointer(at: str, keyword: str) -> str:
    return f"{at}/{escape(keyword)}"


def _above(pointer: str) -> Iterator[str]:
    """The pointers to all that a place stands in."""
    at = pointer.rfind("/")
    while at > 0:
        yield pointer[:at]
        at = pointer.rfind("/", 0, at)
