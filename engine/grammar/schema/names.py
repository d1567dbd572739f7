"""Members whose names a schema says in other ways than by listing them.

A comma is offered wherever a pattern or `additionalProperties` might let another member follow. So few names become
listed members, of which it is known when none is left, and only patterns of many names stay patterns.
"""

from typing import Any

from engine.grammar.language.expression import LanguageError
from engine.grammar.schema.algebra import Algebra
from engine.grammar.schema.strings import Strings
from engine.grammar.schema.values import Schema

MAX_WORDS = 64
"""Names that one pattern is spelled out into."""


class Names:
    """Lists the names that objects of one document may have."""

    def __init__(self, strings: Strings, algebra: Algebra) -> None:
        self._strings = strings
        self._algebra = algebra

    def listed(self, schema: Schema) -> Schema:
        """A rewritten schema of the same meaning, its finite names in `properties`; False if it has too few of them.

        Whatever stands in its `allOf` and `anyOf` was listed when it was made.
        """
        if not isinstance(schema, dict) or not schema.keys() & {"patternProperties", "required", "minProperties"}:
            return schema
        out = dict(schema)
        properties = dict(out.get("properties", {}))
        patterns: dict[str, Schema] = {}
        for pattern, part in out.get("patternProperties", {}).items():
            self._take(pattern, part, properties, patterns)
        for name in out.get("required", ()):
            if name not in properties:
                part = self._undeclared(name, patterns, out.get("additionalProperties", {}))
                if part is not None:
                    properties[name] = part
        if properties:
            out["properties"] = properties
        if "patternProperties" in out:
            out["patternProperties"] = patterns
            if not patterns:
                del out["patternProperties"]
        return self._without_objects(out) if self._lacks_names(out) else out

    def _take(self, pattern: str, part: Schema, properties: dict[str, Schema], patterns: dict[str, Schema]) -> None:
        """Join the part with the members it is about, and list the names that are left if these are few."""
        try:
            for name in properties:
                if self._strings.finds(pattern, name):
                    properties[name] = self._algebra.all_of(properties[name], part)
            words = self._strings.words([pattern], [], MAX_WORDS)
        except LanguageError:
            words = None
        if words is None:
            patterns[pattern] = part
            return
        properties |= {word: part for word in words if word not in properties}

    def _undeclared(self, name: str, patterns: dict[str, Schema], additional: Schema) -> Schema | None:
        """What is said of a member that is not listed, None where that is not known."""
        try:
            parts = [part for pattern, part in patterns.items() if self._strings.finds(pattern, name)]
        except LanguageError:
            return None
        return self._algebra.all_of(*(parts or [additional]))

    def _lacks_names(self, keys: dict[str, Any]) -> bool:
        possible = {name for name, part in keys.get("properties", {}).items() if part is not False}
        if not possible >= set(keys.get("required", ())):
            return True
        endless = keys.get("additionalProperties") is not False or keys.get("patternProperties")
        return not endless and len(possible) < keys.get("minProperties", 0)

    def _without_objects(self, keys: dict[str, Any]) -> Schema:
        types = self._algebra.types(keys) - {"object"}
        return self._algebra.all_of({"type": types}, keys) if types else False
