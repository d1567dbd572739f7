"""JSON values and the types they have; the complement of a finite set of them."""

import re
from collections.abc import Callable, Hashable, Iterable
from decimal import Decimal
from itertools import pairwise
from typing import Any

from engine.grammar.schema.faults import Budget

Schema = Any
"""A JSON schema: `True`, `False` or an object."""
Rewrite = Callable[[Schema, str], Schema]
"""Makes a schema of one that stands at a pointer."""

NUMBER = frozenset({"integer", "fraction"})
"""JSON Schema's `number`. A `fraction` is a number that is no integer; no schema can name that type."""
ALL_TYPES = frozenset({"null", "boolean", "string", "array", "object"}) | NUMBER


def type_of(value: Any) -> str:
    """The type of a JSON value; 1.0 is an integer (JSON Schema 2020-12, section 4.2.3)."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case int() | float() | Decimal():
            return "integer" if value == int(value) else "fraction"
        case list():
            return "array"
    return "object"


def identity(value: Any) -> Hashable:
    """Equal for values that are equal as JSON: 1 and 1.0 are, 1 and true are not."""
    match value:
        case bool():
            return ("boolean", value)
        case list():
            return ("array", tuple(identity(item) for item in value))
        case dict():
            return ("object", frozenset((name, identity(item)) for name, item in value.items()))
    known: Hashable = value
    return known


OtherStrings = Callable[[list[str]], str]
"""Makes a pattern of all strings but these."""


def others(values: Iterable[Any], budget: Budget, other_strings: OtherStrings) -> list[Schema]:
    """Schemas that together accept every value but these."""
    by_type: dict[str, list[Any]] = {}
    for value in {identity(value): value for value in values}.values():
        kind = type_of(value)
        by_type.setdefault("number" if kind in NUMBER else kind, []).append(value)
    found: list[Schema] = [{"type": ALL_TYPES - {*by_type, *(NUMBER if "number" in by_type else ())}}]
    if by_type.get("boolean"):
        found += [{"enum": [value]} for value in (True, False) if value not in by_type["boolean"]]
    if strings := by_type.get("string"):
        budget.spend(sum(map(len, strings)))
        found.append({"type": frozenset({"string"}), "pattern": other_strings(strings)})
    found += _other_numbers(by_type.get("number", []))
    for kind, other in (("array", _other_arrays), ("object", _other_objects)):
        if constants := by_type.get(kind):
            found.append({"allOf": [{"anyOf": other(value, budget, other_strings)} for value in constants]})
    return found


def _other_numbers(values: list[Any]) -> list[Schema]:
    if not values:
        return []
    values = sorted(values)
    found: list[Schema] = [{"type": NUMBER, "exclusiveMaximum": values[0]}]
    for low, high in pairwise(values):
        found.append({"type": NUMBER, "exclusiveMinimum": low, "exclusiveMaximum": high})
    return [*found, {"type": NUMBER, "exclusiveMinimum": values[-1]}]


def _other_arrays(value: list[Any], budget: Budget, other_strings: OtherStrings) -> list[Schema]:
    array = {"type": frozenset({"array"})}
    found: list[Schema] = [{**array, "minItems": len(value) + 1}]
    if value:
        found.append({**array, "maxItems": len(value) - 1})
    for position, item in enumerate(value):
        other = {"anyOf": others([item], budget, other_strings)}
        found.append({**array, "minItems": position + 1, "prefixItems": [*[{}] * position, other]})
    return found


def _other_objects(value: dict[str, Any], budget: Budget, other_strings: OtherStrings) -> list[Schema]:
    type_ = {"type": frozenset({"object"})}
    free: dict[str, Schema] = {name: {} for name in value}
    more = {**type_, "properties": free, "required": list(value), "minProperties": len(value) + 1}
    found: list[Schema] = [more if value else {**type_, "minProperties": 1}]
    for name, item in value.items():
        found.append({**type_, "properties": {name: False}})
        found.append(
            {**type_, "properties": {name: {"anyOf": others([item], budget, other_strings)}}, "required": [name]}
        )
    return found


_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$#&\-~/]")


def quote(text: str) -> str:
    """A text in a pattern."""
    return _SPECIAL.sub(r"\\\g<0>", text)
