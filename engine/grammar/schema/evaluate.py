"""Whether a schema accepts a value: where values are listed, the other keywords only choose among them."""

from collections.abc import Hashable
from decimal import Decimal
from fractions import Fraction
from typing import Any

from engine.grammar.schema.document import Document
from engine.grammar.schema.faults import Budget, Unfollowable
from engine.grammar.schema.formats import PATTERNS, REFUSED
from engine.grammar.schema.strings import Strings
from engine.grammar.schema.values import NUMBER, Schema, identity, type_of


class Evaluator:
    """Evaluates schemas of one document. Raises `SchemaFault` and `LanguageError` where it cannot tell."""

    def __init__(self, document: Document, strings: Strings, budget: Budget) -> None:
        self._document = document
        self._strings = strings
        self._budget = budget
        self._listed: dict[int, frozenset[Hashable]] = {}
        """By the identity of a list of the document."""

    def accepts(self, schema: Schema, value: Any, at: str = "") -> bool:
        """Whether the value is valid."""
        if isinstance(schema, bool):
            return schema
        with self._budget:
            keys = self._document.keywords(schema, at)
            for name in ("unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef"):
                if name in keys:
                    raise Unfollowable(at, name, "is not supported")
            kind = type_of(value)
            if "type" in keys and kind not in keys["type"]:
                return False
            if "enum" in keys and identity(value) not in self._identities(schema, keys["enum"]):
                return False
            if not self._applied(schema, keys, value, at):
                return False
            if kind == "string":
                return self._string(keys, value, at)
            if kind in NUMBER:
                return _number(keys, value)
            if kind == "array":
                return self._array(keys, value, at)
            return kind != "object" or self._object(keys, value, at)

    def _identities(self, schema: dict[str, Any], values: list[Any]) -> frozenset[Hashable]:
        """Those of listed values; of a list that each of its values is looked up in, once."""
        if values is not schema.get("enum"):
            return frozenset(map(identity, values))
        known = self._listed.get(id(values))
        if known is None:
            known = self._listed[id(values)] = frozenset(map(identity, values))
        return known

    def _applied(self, schema: dict[str, Any], keys: dict[str, Any], value: Any, at: str) -> bool:
        if "$ref" in keys and not self.accepts(*_swapped(self._document.resolve(schema, at), value)):
            return False
        if not all(self.accepts(part, value, at) for part in keys.get("allOf", ())):
            return False
        if "anyOf" in keys and not any([self.accepts(part, value, at) for part in keys["anyOf"]]):
            return False
        if "oneOf" in keys and sum(self.accepts(part, value, at) for part in keys["oneOf"]) != 1:
            return False
        if "not" in keys and self.accepts(keys["not"], value, at):
            return False
        if "if" in keys:
            return self.accepts(keys.get("then" if self.accepts(keys["if"], value, at) else "else", True), value, at)
        return True

    def _string(self, keys: dict[str, Any], value: str, at: str) -> bool:
        if not keys.get("minLength", 0) <= len(value) <= keys.get("maxLength", len(value)):
            return False
        if keys.get("format") in REFUSED:
            raise Unfollowable(at, "format", "beside listed values cannot be followed")
        patterns = [keys[name] for name in ("pattern",) if name in keys]
        patterns += [PATTERNS[keys["format"]]] if keys.get("format") in PATTERNS else []
        return all(self._strings.finds(pattern, value) for pattern in patterns)

    def _array(self, keys: dict[str, Any], value: list[Any], at: str) -> bool:
        if not keys.get("minItems", 0) <= len(value) <= keys.get("maxItems", len(value)):
            return False
        if keys.get("uniqueItems") is True and len({identity(item) for item in value}) < len(value):
            return False
        if "contains" in keys:
            found = sum(self.accepts(keys["contains"], item, at) for item in value)
            if not keys.get("minContains", 1) <= found <= keys.get("maxContains", found):
                return False
        prefix = keys.get("prefixItems", [])
        rest = [keys.get("items", True)] * (len(value) - len(prefix))
        return all(self.accepts(part, item, at) for part, item in zip([*prefix, *rest], value, strict=False))

    def _object(self, keys: dict[str, Any], value: dict[str, Any], at: str) -> bool:
        if not keys.get("minProperties", 0) <= len(value) <= keys.get("maxProperties", len(value)):
            return False
        if any(name not in value for name in keys.get("required", ())):
            return False
        dependent = keys.get("dependentSchemas", {}).items()
        if not all(self.accepts(part, value, at) for name, part in dependent if name in value):
            return False
        names = keys.get("propertyNames", True)
        return all(self.accepts(names, name, at) and self._member(keys, name, item, at) for name, item in value.items())

    def _member(self, keys: dict[str, Any], name: str, value: Any, at: str) -> bool:
        parts = [keys["properties"][name]] if name in keys.get("properties", {}) else []
        patterns = keys.get("patternProperties", {}).items()
        parts += [part for pattern, part in patterns if self._strings.finds(pattern, name)]
        return all(self.accepts(part, value, at) for part in parts or [keys.get("additionalProperties", True)])


def _swapped(target: tuple[Schema, str], value: Any) -> tuple[Schema, Any, str]:
    return target[0], value, target[1]


def _number(keys: dict[str, Any], value: int | Decimal) -> bool:
    if "multipleOf" in keys and Fraction(value) % Fraction(keys["multipleOf"]):
        return False
    if not keys.get("minimum", value) <= value <= keys.get("maximum", value):
        return False
    low, high = keys.get("exclusiveMinimum"), keys.get("exclusiveMaximum")
    return (low is None or value > low) and (high is None or value < high)
