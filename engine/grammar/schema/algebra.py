"""Joining rewritten schemas: all of them, any of them, with what cannot be dropped early.

Rewritten schemas are plain objects in the dialect of 2020-12 whose `type` is a frozenset of `ALL_TYPES`.
"""

from collections.abc import Callable, Iterable
from typing import Any

from engine.grammar.schema.faults import Budget
from engine.grammar.schema.members import KEYWORDS, join_members
from engine.grammar.schema.strings import Strings
from engine.grammar.schema.values import ALL_TYPES, NUMBER, Schema, identity, type_of

_KEYWORDS_OF = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "array": ("minItems", "maxItems", "prefixItems", "items", "uniqueItems"),
    "object": ("properties", "patternProperties", "additionalProperties", "required", "minProperties", "maxProperties"),
}
_NUMERIC = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "notMultipleOf")
_LARGEST = {"minLength", "minItems", "minProperties", "minimum", "exclusiveMinimum"}
_SMALLEST = {"maxLength", "maxItems", "maxProperties", "maximum", "exclusiveMaximum"}


class Algebra:
    """Joins schemas; `ref_types` tells which types what a reference of ours stands for may have."""

    def __init__(self, budget: Budget, strings: Strings, ref_types: Callable[[str], frozenset[str]]) -> None:
        self._budget = budget
        self._strings = strings
        self._ref_types = ref_types

    def types(self, schema: Schema) -> frozenset[str]:
        """Types outside of which nothing is accepted."""
        if isinstance(schema, bool):
            return ALL_TYPES if schema else frozenset()
        found: frozenset[str] = schema.get("type", ALL_TYPES)
        if "enum" in schema:
            found &= {type_of(value) for value in schema["enum"]}
        if "$ref" in schema:
            found &= self._ref_types(schema["$ref"])
        if "anyOf" in schema:
            found &= frozenset().union(*map(self.types, schema["anyOf"]))
        for part in schema.get("allOf", ()):
            found &= self.types(part)
        return found

    def any_of(self, schemas: Iterable[Schema]) -> Schema:
        """What accepts whatever one of them accepts."""
        choices: list[Schema] = []
        for schema in schemas:
            self._budget.spend()
            if schema is True or schema == {}:
                return {}
            if schema is not False:
                choices += schema["anyOf"] if schema.keys() == {"anyOf"} else [schema]
        bare = [choice["type"] for choice in choices if choice.keys() == {"type"}]
        if len(bare) > 1:
            choices = [{"type": frozenset().union(*bare)}, *(c for c in choices if c.keys() != {"type"})]
        if not choices:
            return False
        return choices[0] if len(choices) == 1 else {"anyOf": choices}

    def all_of(self, *schemas: Schema) -> Schema:
        """What accepts only what all of them accept."""
        parts: list[dict[str, Any]] = []
        for schema in schemas:
            self._budget.spend()
            if schema is False:
                return False
            if schema is not True and schema:
                parts += schema["allOf"] if schema.keys() == {"allOf"} else [schema]
        if len(parts) == 1:
            return self._prune(parts[0])
        types = ALL_TYPES
        for part in parts:
            types &= self.types(part)
        narrowed = [self._narrow(part, types) for part in parts]
        if not types or any(part is False for part in narrowed):
            return False
        if types != ALL_TYPES and not any("enum" in part for part in narrowed):
            narrowed.insert(0, {"type": types})
        return self._prune(self._merge_all(narrowed))

    def _narrow(self, part: dict[str, Any], types: frozenset[str]) -> Schema:
        """The part for instances of these types: choices and keywords of others fall away, `type` too."""
        out = {name: value for name, value in part.items() if name != "type"}
        for kind, names in _KEYWORDS_OF.items():
            if kind not in types:
                out = {name: value for name, value in out.items() if name not in names}
        if not types & NUMBER:
            out = {name: value for name, value in out.items() if name not in _NUMERIC}
        if "enum" in out:
            out["enum"] = [value for value in out["enum"] if type_of(value) in types]
            if not out["enum"]:
                return False
        if "anyOf" in out:
            choice = self.any_of(self._typed(choice, types) for choice in out.pop("anyOf"))
            if choice is False:
                return False
            out = {**out, **choice} if not out.keys() & choice.keys() else {"allOf": [out, choice]}
        return out

    def _typed(self, choice: Schema, types: frozenset[str]) -> Schema:
        """One choice for instances of these types, its own type kept if it says more."""
        own = self.types(choice) & types
        if isinstance(choice, bool) or not own or own == self.types(choice):
            return bool(own) and choice
        narrowed = self._narrow(choice, own)
        if isinstance(narrowed, bool) or own == types:
            return narrowed
        return {"type": own, **narrowed} if "type" not in narrowed else {"allOf": [{"type": own}, narrowed]}

    def _merge_all(self, parts: list[dict[str, Any]]) -> Schema:
        merged: list[dict[str, Any]] = []
        for part in parts:
            for position, other in enumerate(merged):
                joined = self._merge(other, part)
                if joined is False:
                    return False
                if joined is not None:
                    merged[position] = joined
                    break
            else:
                if part:
                    merged.append(part)
        if not merged:
            return {}
        return merged[0] if len(merged) == 1 else {"allOf": merged}

    def _merge(self, one: dict[str, Any], two: dict[str, Any]) -> Schema | None:
        """Both in one object; None where keywords would come to mean something else."""
        self._budget.spend()
        out = dict(one)
        for name, value in two.items():
            if name not in out or name in KEYWORDS:
                continue
            if name == "required":
                out[name] = [*out[name], *(key for key in value if key not in out[name])]
            elif name == "notMultipleOf":
                out[name] = [*out[name], *(step for step in value if step not in out[name])]
            elif name == "type":
                out[name] &= value
                if not out[name]:
                    return False
            elif name == "enum":
                known = {identity(other) for other in out[name]}
                out[name] = [other for other in value if identity(other) in known]
                if not out[name]:
                    return False
            elif name in _LARGEST or name in _SMALLEST:
                out[name] = (max if name in _LARGEST else min)(out[name], value)
            elif out[name] != value:
                return None
        if one.keys() & KEYWORDS and two.keys() & KEYWORDS:
            members = join_members(one, two, self._strings, self.all_of)
            if members is None:
                return None
            out = {name: value for name, value in out.items() if name not in KEYWORDS} | members
        elif {"prefixItems", "items"} & one.keys() and {"prefixItems", "items"} & two.keys():
            return None
        new = {name: value for name, value in two.items() if name not in out}
        out |= new if not one.keys() & KEYWORDS else {name: new[name] for name in new if name not in KEYWORDS}
        if any(out.get("properties", {}).get(name) is False for name in out.get("required", ())):
            return self._narrow_to(out, out.get("type", ALL_TYPES) - {"object"})
        return out

    def _narrow_to(self, schema: dict[str, Any], types: frozenset[str]) -> Schema:
        narrowed = self._narrow(schema, types) if types else False
        return {"type": types, **narrowed} if isinstance(narrowed, dict) else narrowed and {"type": types}

    def _prune(self, schema: Schema) -> Schema:
        """Drop choices that contradict what stands beside them."""
        if isinstance(schema, bool) or "anyOf" not in schema or len(schema) == 1:
            return schema
        beside = {name: value for name, value in schema.items() if name not in ("anyOf", "allOf")}
        choices = [choice for choice in schema["anyOf"] if self._agree(beside, choice)]
        if len(choices) > 1 or "allOf" in schema:
            return {**schema, "anyOf": choices} if choices else False
        return self.all_of(beside, *choices) if choices else False

    def _agree(self, one: dict[str, Any], two: Schema) -> bool:
        if isinstance(two, bool):
            return two
        return (
            bool(self.types(one) & self.types(two))
            and self._merge({**one, "type": self.types(one)}, {**two, "type": self.types(two)}) is not False
        )
