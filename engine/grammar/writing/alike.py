"""Schemas that say the same, found to be one: a document says `{"type": "string"}` in a hundred places."""

from collections.abc import Hashable
from typing import Any

from engine.grammar.schema.values import Schema

_LISTS = frozenset({"anyOf", "allOf", "prefixItems"})
_MAPS = frozenset({"properties", "patternProperties"})
_ONES = frozenset({"items", "additionalProperties"})


class Alike:
    """Rewritten schemas of one document."""

    def __init__(self) -> None:
        self._first: dict[Hashable, Schema] = {}
        self._found: dict[int, tuple[Schema, Schema]] = {}
        """By the identity of a schema, which is kept with it."""

    def of(self, schema: Schema) -> Schema:
        """The first schema that was asked for that says the same, members in the same order."""
        if isinstance(schema, bool):
            return schema
        found = self._found.get(id(schema))
        if found is None:
            said = frozenset((name, self._said(name, value)) for name, value in schema.items())
            found = self._found[id(schema)] = schema, self._first.setdefault(said, schema)
        return found[1]

    def _said(self, name: str, value: Any) -> Hashable:
        if name in _ONES:
            return id(self.of(value))
        if name in _LISTS:
            return tuple(id(self.of(part)) for part in value)
        if name in _MAPS:
            return tuple((key, id(self.of(part))) for key, part in value.items())
        return repr(value) if isinstance(value, list) else value  # of listed values 1 is not true, nor written 1.0
