"""`unevaluatedProperties` and `unevaluatedItems`, where it is known from the schema alone what else evaluates them.

So it is of a schema's own keywords, and of those of its `allOf` and of what it refers to: these hold for every value
(JSON Schema 2020-12, sections 11.2 and 11.3). What choices and conditions evaluate depends on the value.
"""

from dataclasses import dataclass, field
from typing import Any

from engine.grammar.schema.document import Document
from engine.grammar.schema.faults import Unfollowable
from engine.grammar.schema.values import Schema

_BY_VALUE = frozenset({"anyOf", "oneOf", "if", "dependentSchemas", "$dynamicRef", "$recursiveRef"})


@dataclass(slots=True)
class Evaluated:
    """What is evaluated of a value."""

    names: dict[str, None] = field(default_factory=dict)
    patterns: dict[str, None] = field(default_factory=dict)
    all_members: bool = False
    num_items: int = 0
    """So many from the first on."""
    all_items: bool = False


def said_members(schema: dict[str, Any], unevaluated: Schema, at: str, document: Document) -> Schema:
    """`unevaluatedProperties`, as `additionalProperties` beside all that is evaluated. Raises `Unfollowable`."""
    found = _evaluated(schema, at, document, "unevaluatedProperties")
    if found.all_members:
        return {}
    return {
        "properties": {name: {} for name in found.names},
        "patternProperties": {pattern: {} for pattern in found.patterns},
        "additionalProperties": unevaluated,
    }


def said_items(schema: dict[str, Any], unevaluated: Schema, at: str, document: Document) -> Schema:
    """`unevaluatedItems`, as `items` behind all that is evaluated. Raises `Unfollowable`."""
    found = _evaluated(schema, at, document, "unevaluatedItems")
    if found.all_items:
        return {}
    return {"prefixItems": [{}] * found.num_items, "items": unevaluated} if found.num_items else {"items": unevaluated}


def _evaluated(schema: dict[str, Any], at: str, document: Document, keyword: str) -> Evaluated:
    found = Evaluated()
    waiting: list[tuple[Schema, str]] = [(schema, at)]
    seen: set[str] = set()
    while waiting:
        part, place = waiting.pop(0)
        if not isinstance(part, dict) or place in seen:
            continue
        seen.add(place)
        keys = document.keywords(part, place)
        by_value = sorted(_BY_VALUE & keys.keys()) + (["contains"] if _counts_contains(keys, keyword) else [])
        _add(found, keys, is_outermost=place == at)
        is_done = found.all_members if keyword == "unevaluatedProperties" else found.all_items
        if by_value and not is_done:
            raise Unfollowable(at, keyword, f"beside {by_value[0]!r} cannot be followed")
        waiting += [(one, f"{place}/allOf/{number}") for number, one in enumerate(keys.get("allOf", ()))]
        waiting += [document.resolve(part, place)] if "$ref" in keys else []
    return found


def _counts_contains(keys: dict[str, Any], keyword: str) -> bool:
    """Items that `contains` finds are evaluated, which are elsewhere in each value."""
    return keyword == "unevaluatedItems" and "contains" in keys


def _add(found: Evaluated, keys: dict[str, Any], *, is_outermost: bool) -> None:
    found.names |= dict.fromkeys(keys.get("properties", ()))
    found.patterns |= dict.fromkeys(keys.get("patternProperties", ()))
    found.num_items = max(found.num_items, len(keys.get("prefixItems", ())))
    found.all_members |= "additionalProperties" in keys or (not is_outermost and "unevaluatedProperties" in keys)
    found.all_items |= "items" in keys or (not is_outermost and "unevaluatedItems" in keys)
