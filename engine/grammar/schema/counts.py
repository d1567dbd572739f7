"""Objects whose members are counted beside some that are listed."""

from itertools import combinations
from typing import Any

from engine.grammar.schema.algebra import Algebra
from engine.grammar.schema.faults import MAX_BRANCHES, Unfollowable
from engine.grammar.schema.values import ALL_TYPES, Schema

COUNTS = frozenset({"minProperties", "maxProperties"})
_OBJECT: dict[str, Any] = {"type": frozenset({"object"})}
_NO_OBJECT: dict[str, Any] = {"type": ALL_TYPES - {"object"}}
_IN_PLACE = ("allOf", "anyOf", "oneOf")


def selections(keys: dict[str, Any], algebra: Algebra, at: str) -> Schema:
    """Which of the listed members are there, spelled out, for then the others can be counted.

    `keys` is a rewritten schema, to be joined with what comes back. Raises `Unfollowable`.
    """
    properties, required = keys.get("properties", {}), set(keys.get("required", ()))
    optional = [name for name, part in properties.items() if part is not False and name not in required]
    if not optional:
        return {}
    low, high = keys.get("minProperties", 0), keys.get("maxProperties")
    if (high is None and low <= len(required)) or "object" not in algebra.types(keys):
        return {}
    if high is None and low == 1:
        some = [{**_OBJECT, "required": [name]} for name in optional]
        none = {**_OBJECT, "properties": dict.fromkeys(optional, False)}
        return algebra.any_of([_NO_OBJECT, *some, none])
    if 2 ** len(optional) > MAX_BRANCHES:
        keyword = "minProperties" if high is None else "maxProperties"
        raise Unfollowable(at, keyword, f"beside {len(optional)} optional properties cannot be followed")
    choices: list[Schema] = [_NO_OBJECT]
    for present in (set(some) for size in range(len(optional) + 1) for some in combinations(optional, size)):
        absent = {name: name in present for name in optional}
        choices.append({**_OBJECT, "required": sorted(present), "properties": absent})
    return algebra.any_of(choices)


def place_of(schema: Schema, keyword: str, at: str) -> str:
    """The pointer to the schema that has a keyword: this one, `at`, or one of those that are applied in its place."""
    if isinstance(schema, dict) and keyword not in schema:
        for name in _IN_PLACE:
            for number, part in enumerate(schema.get(name) or ()):
                if isinstance(part, dict) and keyword in part:
                    return f"{at}/{name}/{number}"
    return at
