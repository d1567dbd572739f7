"""Keywords about which members and items there are, said in those that a grammar can follow."""

from itertools import combinations
from typing import Any

from engine.grammar.language.expression import LanguageError
from engine.grammar.schema.algebra import Algebra
from engine.grammar.schema.faults import MAX_BRANCHES, MAX_PLACES, Unfollowable
from engine.grammar.schema.strings import Strings
from engine.grammar.schema.values import ALL_TYPES, Schema, identity

MAX_CONTAINED = 100
"""Items of some kind that an array may be asked to hold."""
MAX_LISTED = 200
"""Arrays that are listed because their items have to differ."""
_OBJECT: dict[str, Any] = {"type": frozenset({"object"})}
_ARRAY: dict[str, Any] = {"type": frozenset({"array"})}
_NO_OBJECT: dict[str, Any] = {"type": ALL_TYPES - {"object"}}
_NO_ARRAY: dict[str, Any] = {"type": ALL_TYPES - {"array"}}


class Counted:
    """Says them for one document; schemas in them have been said already."""

    def __init__(self, algebra: Algebra, strings: Strings) -> None:
        self._algebra = algebra
        self._strings = strings

    def dependent(self, name: str, needed: Schema) -> Schema:
        """`dependentSchemas`: no such member, or what it needs, which comes behind it."""
        absent = {**_OBJECT, "properties": {name: False}}
        present = self._algebra.all_of({**_OBJECT, "required": [name], "properties": {name: {}}}, needed)
        return self._algebra.any_of([_NO_OBJECT, absent, present])

    def property_names(self, said: Schema, at: str) -> Schema:
        """`propertyNames` of the schema `at` a pointer, said without references. Raises `Unfollowable`."""
        names = self._algebra.all_of({"type": frozenset({"string"})}, said)
        if names is False:
            return self._algebra.any_of([_NO_OBJECT, {**_OBJECT, "maxProperties": 0}])
        if names.keys() == {"type"}:
            return {}
        try:
            pattern = self._strings.of_schema(names)
        except LanguageError as error:
            raise Unfollowable(at, "propertyNames", f"cannot be followed: {error}") from None
        return {"patternProperties": {pattern: {}}, "additionalProperties": False}

    def contains(self, item: Schema, keys: dict[str, Any], at: str) -> Schema:
        """`contains` of the schema `at` a pointer, with what stands beside it. Raises `Unfollowable`."""
        low = keys.get("minContains", 1)
        if "maxContains" in keys:
            raise Unfollowable(at, "maxContains", "cannot be followed")
        if item == {} or item is True or not low:
            return {"minItems": low}
        most = keys.get("maxItems", max(MAX_PLACES, low))
        places = [some for some in combinations(range(min(most, max(MAX_PLACES, low))), low)]
        if low > MAX_CONTAINED or len(places) > MAX_BRANCHES:
            raise Unfollowable(at, "minContains", f"above {MAX_CONTAINED} cannot be followed")
        return self._algebra.any_of([_NO_ARRAY, *(_holding(some, item) for some in places)])

    def distinct(self, plain: dict[str, Any], keys: dict[str, Any]) -> Schema:
        """`uniqueItems` beside keywords that have become `plain`.

        Where few arrays are possible at all they are listed, for an item may leave another no value.
        """
        arrays = _few_arrays(plain) if len(keys.get("prefixItems", ())) > 1 or "contains" in keys else None
        return {"uniqueItems": True} if arrays is None else self._algebra.any_of([_NO_ARRAY, {"enum": arrays}])


def _few_arrays(plain: dict[str, Any]) -> list[list[Any]] | None:
    """All arrays whose items differ, None if they are many."""
    places = [_values(part) for part in plain.get("prefixItems", ())]
    most = plain.get("maxItems", MAX_LISTED)
    others = _values(plain.get("items", True)) if most > len(places) else []
    if others is None or len(places) + len(others) > MAX_LISTED:
        return None
    found: list[list[Any]] = []
    level: list[list[Any]] = [[]]
    for size in range(min(most, len(places) + len(others)) + 1):
        found += level if size >= plain.get("minItems", 0) else []
        following = places[size] if size < len(places) else others
        if following is None or len(found) + len(level) > MAX_LISTED:
            return None
        level = [[*one, value] for one in level for value in following
                 if identity(value) not in set(map(identity, one))]  # fmt: skip
    return found


def _values(schema: Schema) -> list[Any] | None:
    """The values that a rewritten schema accepts, None if it does not list them."""
    if schema is False:
        return []
    if not isinstance(schema, dict) or schema.keys() != {"enum"}:
        return None
    return list({identity(value): value for value in schema["enum"]}.values())


def _holding(places: tuple[int, ...], item: Schema) -> Schema:
    """An array with such an item at each of these places."""
    prefix = [item if at in places else {} for at in range(places[-1] + 1)]
    return {**_ARRAY, "minItems": len(prefix), "prefixItems": prefix}
