"""The complement of each keyword: what accepts the values that it refuses."""

from collections.abc import Callable
from fractions import Fraction
from itertools import combinations
from typing import Any

from engine.grammar.language.expression import LanguageError
from engine.grammar.schema.algebra import Algebra
from engine.grammar.schema.faults import MAX_BRANCHES, MAX_PLACES, Budget, Unfollowable, escape
from engine.grammar.schema.formats import PATTERNS, REFUSED, SHAPES
from engine.grammar.schema.overlap import Overlap
from engine.grammar.schema.steps import split
from engine.grammar.schema.strings import Strings
from engine.grammar.schema.values import ALL_TYPES, NUMBER, Rewrite, Schema, others

_OBJECT: dict[str, Any] = {"type": frozenset({"object"})}
_ARRAY: dict[str, Any] = {"type": frozenset({"array"})}
_STRING: dict[str, Any] = {"type": frozenset({"string"})}
_NUMBER: dict[str, Any] = {"type": NUMBER}
_BOUNDS = {"minimum": "exclusiveMaximum", "maximum": "exclusiveMinimum", "exclusiveMinimum": "maximum",
           "exclusiveMaximum": "minimum"}  # fmt: skip
_LOWS = {
    "minLength": ("maxLength", _STRING),
    "minItems": ("maxItems", _ARRAY),
    "minProperties": ("maxProperties", _OBJECT),
}
_HIGHS = {other: (name, kind) for name, (other, kind) in _LOWS.items()}
_NEVER = ("uniqueItems", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef",
          "maxContains", "minContains")  # fmt: skip
_WHERE = "'not', or an overlap of choices of 'oneOf',"


class Complement:
    """Complements for one document; `Rewriter.deny` is the way in.

    A complement is made of what its parts accept (`say`) and refuse (`deny`, `deny_reference`), which is the
    rewriter's to say.
    """

    def __init__(
        self,
        algebra: Algebra,
        strings: Strings,
        overlap: Overlap,
        budget: Budget,
        *,
        say: Rewrite,
        deny: Rewrite,
        deny_reference: Callable[[dict[str, Any], str], Schema],
    ) -> None:
        self.rival_names: frozenset[str] = frozenset()
        """Names of members by which the choice of `oneOf` at hand differs from those that are denied beside it."""
        self._algebra = algebra
        self._strings = strings
        self._overlap = overlap
        self._budget = budget
        self._say = say
        self._deny = deny
        self._deny_reference = deny_reference

    def rivals(self, choices: list[Schema], said: list[Schema]) -> dict[int, list[int]]:
        """Of the choices of a `oneOf` that accept something, which others may accept the same; `said` is what each has
        become."""
        algebra = self._algebra
        found: dict[int, list[int]] = {number: [] for number, part in enumerate(said) if part is not False}
        for one, two in combinations(found, 2):
            if (
                algebra.types(said[one]) & algebra.types(said[two])
                and algebra.all_of(said[one], said[two]) is not False
                and not self._overlap.disjoint(choices[one], choices[two])
            ):
                found[one].append(two)
                found[two].append(one)
        return found

    def of(self, schema: dict[str, Any], keys: dict[str, Any], at: str) -> Schema:
        """The complement of an object schema with these keywords: that of one of them."""
        for name in _NEVER:
            if keys.get(name) not in (None, False):
                raise Unfollowable(at, name, f"cannot be turned round, as {_WHERE} requires")
        types = keys.get("type", ALL_TYPES)
        found = [
            *self._scalars(keys, at),
            *self._arrays(keys, at),
            *self._objects(keys, at),
            *self._applied(schema, keys, at),
        ]
        typed = [self._algebra.all_of({"type": types}, part) for part in found]
        return self._algebra.any_of([{"type": ALL_TYPES - types} if types != ALL_TYPES else False, *typed])

    def _scalars(self, keys: dict[str, Any], at: str) -> list[Schema]:
        found: list[Schema] = []
        if "enum" in keys:
            spelled = others(keys["enum"], self._budget, self._strings.others)
            found.append(_joined({"anyOf": spelled}, self._algebra))
        found += [{**_NUMBER, _BOUNDS[name]: keys[name]} for name in _BOUNDS if name in keys]
        found += [{**kind, name: keys[low] - 1} for low, (name, kind) in _LOWS.items() if keys.get(low)]
        found += [{**kind, name: keys[high] + 1} for high, (name, kind) in _HIGHS.items() if high in keys]
        if "multipleOf" in keys:
            if split(Fraction(keys["multipleOf"])) is None:
                raise Unfollowable(at, "multipleOf", f"cannot be turned round, as {_WHERE} requires")
            found.append({**_NUMBER, "notMultipleOf": [keys["multipleOf"]]})
        if "pattern" in keys:
            found.append(self._pattern(keys["pattern"], at))
        shape = {**PATTERNS, **SHAPES}.get(keys.get("format", ""))
        if shape is not None:
            found.append(self._pattern(shape, at))
        elif keys.get("format") in REFUSED:
            raise Unfollowable(at, "format", f"cannot be turned round, as {_WHERE} requires")
        return found

    def _pattern(self, pattern: str, at: str) -> Schema:
        try:
            return {**_STRING, "pattern": self._strings.complement(pattern)}
        except LanguageError as error:
            raise Unfollowable(at, "pattern", f"cannot be turned round ({error}), as {_WHERE} requires") from None

    def _arrays(self, keys: dict[str, Any], at: str) -> list[Schema]:
        prefix = keys.get("prefixItems", [])
        found = [self._item(part, number, f"{at}/prefixItems/{number}") for number, part in enumerate(prefix)]
        if "items" in keys:
            other = self._deny(keys["items"], f"{at}/items")
            if other == {} or other is True:
                found.append({**_ARRAY, "minItems": len(prefix) + 1})
            elif other is not False:
                places = range(len(prefix), min(keys.get("maxItems", MAX_PLACES), len(prefix) + MAX_PLACES))
                found += [{**_ARRAY, "minItems": n + 1, "prefixItems": [*[{}] * n, other]} for n in places]
        if "contains" in keys:
            found.append({**_ARRAY, "items": self._deny(keys["contains"], f"{at}/contains")})
        return found

    def _item(self, schema: Schema, number: int, at: str) -> Schema:
        other = self._deny(schema, at)
        if other is False:
            return False
        return {**_ARRAY, "minItems": number + 1, "prefixItems": [*[{}] * number, other]}

    def _objects(self, keys: dict[str, Any], at: str) -> list[Schema]:
        found: list[Schema] = [{**_OBJECT, "properties": {name: False}} for name in keys.get("required", ())]
        for name, part in keys.get("properties", {}).items():
            other = self._deny(part, f"{at}/properties/{escape(name)}")
            if other is not False:
                found.append({**_OBJECT, "properties": {name: other}, "required": [name]})
        for pattern, part in keys.get("patternProperties", {}).items():
            if self._deny(part, f"{at}/patternProperties/{escape(pattern)}") is not False:
                raise Unfollowable(at, "patternProperties", f"cannot be turned round, as {_WHERE} requires")
        if "additionalProperties" in keys:
            found += self._additional(keys, at)
        if "propertyNames" in keys:
            found.append(self._names(keys["propertyNames"], at))
        return found

    def _additional(self, keys: dict[str, Any], at: str) -> list[Schema]:
        """There is a further member, and it is not as it should be."""
        other = self._deny(keys["additionalProperties"], f"{at}/additionalProperties")
        if other is False:
            return []
        names = list(keys.get("properties", {}))
        if (other != {} and other is not True) or keys.get("patternProperties") or 2 ** len(names) > MAX_BRANCHES:
            return self._likely(keys, other, at)
        found: list[Schema] = []
        for present in (set(some) for size in range(len(names) + 1) for some in combinations(names, size)):
            members = {name: name in present for name in names}
            found.append(
                {**_OBJECT, "properties": members, "required": sorted(present), "minProperties": len(present) + 1}
            )
        return found

    def _likely(self, keys: dict[str, Any], other: Schema, at: str) -> list[Schema]:
        """Of further members, only those that the rival choice of a `oneOf` names: all there are if it is closed."""
        known, patterns = keys.get("properties", {}), keys.get("patternProperties", {})
        try:
            likely = [
                name
                for name in sorted(self.rival_names)
                if name not in known and not any(self._strings.finds(pattern, name) for pattern in patterns)
            ]
        except LanguageError:
            likely = []
        if not likely:
            raise Unfollowable(at, "additionalProperties", f"cannot be turned round, as {_WHERE} requires")
        return [{**_OBJECT, "required": [name], "properties": {name: other}} for name in likely]

    def _names(self, schema: Schema, at: str) -> Schema:
        """There is a member whose name is not as it should be: sayable where those names can be listed."""
        wrong = self._algebra.all_of(_STRING, self._deny(schema, f"{at}/propertyNames"))
        if wrong is False:
            return False
        if wrong == _STRING:
            return {**_OBJECT, "minProperties": 1}
        if wrong.keys() - {"type"} != {"enum"}:
            raise Unfollowable(at, "propertyNames", f"cannot be turned round, as {_WHERE} requires")
        return self._algebra.any_of([{**_OBJECT, "required": [name]} for name in wrong["enum"]])

    def _applied(self, schema: dict[str, Any], keys: dict[str, Any], at: str) -> list[Schema]:
        say, deny, algebra = self._say, self._deny, self._algebra
        found: list[Schema] = []
        if "$ref" in keys:
            found.append(self._deny_reference(schema, at))
        found += [deny(part, f"{at}/allOf/{number}") for number, part in enumerate(keys.get("allOf", ()))]
        if "anyOf" in keys:
            found.append(algebra.all_of(*(deny(part, f"{at}/anyOf/{n}") for n, part in enumerate(keys["anyOf"]))))
        if "oneOf" in keys:
            found += self._one_of(keys["oneOf"], at)
        if "not" in keys:
            found.append(say(keys["not"], f"{at}/not"))
        if "if" in keys:
            if "then" in keys:
                found.append(algebra.all_of(say(keys["if"], f"{at}/if"), deny(keys["then"], f"{at}/then")))
            if "else" in keys:
                found.append(algebra.all_of(deny(keys["if"], f"{at}/if"), deny(keys["else"], f"{at}/else")))
        for name, part in keys.get("dependentSchemas", {}).items():
            other = deny(part, f"{at}/dependentSchemas/{escape(name)}")
            found.append(algebra.all_of({**_OBJECT, "required": [name]}, other))
        return found

    def _one_of(self, choices: list[Schema], at: str) -> list[Schema]:
        """None of them, or two."""
        say, algebra = self._say, self._algebra
        found = [algebra.all_of(*(self._deny(part, f"{at}/oneOf/{n}") for n, part in enumerate(choices)))]
        for (one, first), (two, second) in combinations(enumerate(choices), 2):
            if not self._overlap.disjoint(first, second):
                found.append(algebra.all_of(say(first, f"{at}/oneOf/{one}"), say(second, f"{at}/oneOf/{two}")))
        return found


def _joined(schema: Schema, algebra: Algebra) -> Schema:
    if not isinstance(schema, dict):
        return schema
    if "anyOf" in schema:
        return algebra.any_of([_joined(part, algebra) for part in schema["anyOf"]])
    if "allOf" in schema:
        return algebra.all_of(*(_joined(part, algebra) for part in schema["allOf"]))
    out = dict(schema)
    if "properties" in out:
        out["properties"] = {name: _joined(part, algebra) for name, part in out["properties"].items()}
    if "prefixItems" in out:
        out["prefixItems"] = [_joined(part, algebra) for part in out["prefixItems"]]
    return out
