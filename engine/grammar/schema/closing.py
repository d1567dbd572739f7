"""What a schema leaves open, as generation has to take it: every answer still validates, and no model runs away.

Small models that may add members of any name add them until the limit. So where `properties` are said and nothing of
others, there are no others; `additionalProperties: true`, or a schema in its place, keeps an object open. A schema
without `type` means the one type that its keywords speak of: `properties` or `required` an object, `items` an array.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from engine.grammar.schema.values import NUMBER, Schema

_SPEAKS_OF = {
    "object": ("properties", "patternProperties", "additionalProperties", "required", "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
OTHERS = ("additionalProperties", "patternProperties")
"""Keywords that say something of members that are not listed."""


@dataclass(frozen=True, slots=True)
class _Around:
    """What the schemas that hold for the same value besides the one at hand say."""

    names: frozenset[str] = frozenset()
    lists_names: bool = False
    is_open: bool = False
    """One of them speaks of other members."""
    is_typed: bool = False
    has_fewest: int = 0
    """Members there must be."""


class Closing:
    """Closes one rewritten document. `definitions` are its references' targets, by name."""

    def __init__(self, definitions: dict[str, Schema]) -> None:
        self._definitions = definitions
        self._done: dict[str, Schema] = {}
        self._waiting: list[str] = []

    def document(self, root: Schema) -> tuple[Schema, dict[str, Schema]]:
        """The closed root, and the definitions that it needs."""
        root = self._closed(root, _Around())
        while self._waiting:
            name = self._waiting.pop()
            plain = name.removesuffix(_JOINED)
            schema = self._definitions[plain]
            self._done[name] = self._inner(schema) if name != plain else self._closed(schema, _Around())
        return root, self._done

    def _closed(self, schema: Schema, around: _Around) -> Schema:
        """The schema, closed unless what stands around it forbids."""
        if not isinstance(schema, dict):
            return schema
        if schema.keys() == {"$ref"} and around == _Around():
            return {"$ref": self._reference(schema["$ref"], "")}
        here = self._with(around, schema, choices="allOf" in schema)
        if "anyOf" in schema and "allOf" not in schema:
            typed = self._typed(schema, around)
            beside = replace(here, is_typed=here.is_typed or typed.keys() != schema.keys())
            out = self._inner({name: value for name, value in typed.items() if name != "anyOf"})
            return {**out, "anyOf": [self._closed(choice, beside) for choice in schema["anyOf"]]}
        out = self._inner(self._typed(schema, around) if "allOf" not in schema and "$ref" not in schema else schema)
        return self._without_others(out, here)

    def _without_others(self, schema: dict[str, Any], here: _Around) -> Schema:
        properties: dict[str, Schema] = {name: {} for name in sorted(here.names)} | schema.get("properties", {})
        possible = sum(part is not False for part in properties.values())
        if not here.lists_names or here.is_open or possible < here.has_fewest:
            return schema
        ordered = {name: properties.pop(name) for name in schema.get("properties", {})}
        return {**schema, "properties": {**ordered, **properties}, "additionalProperties": False}

    def _inner(self, schema: Schema) -> Schema:
        """The schema as open as it was, what it says of members and items closed."""
        if not isinstance(schema, dict):
            return schema
        out: dict[str, Any] = dict(schema)
        for name in ("properties", "patternProperties"):
            if name in out:
                out[name] = {key: self._closed(part, _Around()) for key, part in out[name].items()}
        for name in ("additionalProperties", "items"):
            if name in out:
                out[name] = self._closed(out[name], _Around())
        if "prefixItems" in out:
            out["prefixItems"] = [self._closed(part, _Around()) for part in out["prefixItems"]]
        for name in ("allOf", "anyOf"):
            if name in out:
                out[name] = [self._inner(part) for part in out[name]]
        if "$ref" in out:
            out["$ref"] = self._reference(out["$ref"], _JOINED)
        return out

    def _reference(self, reference: str, kind: str) -> str:
        """A definition as it is needed, to be made if it is not yet."""
        name = reference.rpartition("/")[2] + kind
        if name not in self._done:
            self._done[name] = True
            self._waiting.append(name)
        return f"#/$defs/{name}"

    def _with(self, around: _Around, schema: dict[str, Any], *, choices: bool) -> _Around:
        """What is around, and what the schema itself says, with that of its choices if they cannot be told apart."""
        names, lists, is_open, typed, fewest = set(around.names), around.lists_names, around.is_open, around.is_typed, 0
        for part in self._in_place(schema, set(), choices=choices):
            names |= {*part.get("properties", {}), *part.get("required", ())}
            members = part.get("properties")
            lists = lists or (members is not None and (not members or any(m is not False for m in members.values())))
            is_open = is_open or any(name in part for name in OTHERS)
            typed = typed or "type" in part or "enum" in part
            fewest = max(fewest, part.get("minProperties", 0))
        return _Around(frozenset(names), lists, is_open, typed, max(fewest, around.has_fewest))

    def _in_place(self, schema: Schema, seen: set[str], *, choices: bool) -> Iterator[dict[str, Any]]:
        """All schemas that hold for the same value."""
        if not isinstance(schema, dict):
            return
        yield schema
        for part in [*schema.get("allOf", ()), *(schema.get("anyOf", ()) if choices else ())]:
            yield from self._in_place(part, seen, choices=True)
        if "$ref" in schema and schema["$ref"] not in seen:
            seen.add(schema["$ref"])
            yield from self._in_place(self._definitions[schema["$ref"].rpartition("/")[2]], seen, choices=True)

    def _typed(self, schema: dict[str, Any], around: _Around) -> dict[str, Any]:
        """With the type that the keywords speak of, where none is said."""
        if around.is_typed or schema.keys() & {"type", "enum"}:
            return schema
        types: set[str] = set()
        for kind, names in _SPEAKS_OF.items():
            if schema.keys() & set(names):
                types |= NUMBER if kind == "number" else {kind}
        return {"type": frozenset(types), **schema} if types else schema


_JOINED = "joined"
"""Behind the name of a definition that stands beside other keywords, and so must stay open."""
