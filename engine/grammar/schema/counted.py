"""Keywords about which members and items there are, said in those that a grammar can follow."""

from typing import Any

from engine.grammar.language.expression import LanguageError
from engine.grammar.schema.algebra import Algebra
from engine.grammar.schema.faults import MAX_PLACES, Unfollowable
from engine.grammar.schema.strings import Strings
from engine.grammar.schema.values import ALL_TYPES, Schema

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
        if low > 1:
            raise Unfollowable(at, "minContains", "above 1 cannot be followed")
        most = min(keys.get("maxItems", MAX_PLACES), MAX_PLACES)
        places = [{**_ARRAY, "minItems": n + 1, "prefixItems": [*[{}] * n, item]} for n in range(most)]
        return self._algebra.any_of([_NO_ARRAY, *places])
