"""What a schema says by speaking of it, for generation (`Closing`): types, where it has no `type`, and members.

`properties` or `contains` accept any text; who writes them means an object or an array. What a keyword has been
rewritten into does not always show of what it speaks, so a keyword that refuses nothing is left beside it as its trace.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from engine.grammar.schema.values import NUMBER, Schema

_SPEAKS_OF = {
    "object": ("properties", "patternProperties", "additionalProperties", "unevaluatedProperties", "propertyNames",
               "required", "minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "dependencies"),
    "array": ("items", "prefixItems", "additionalItems", "unevaluatedItems", "contains", "minContains", "maxContains",
              "minItems", "maxItems", "uniqueItems"),
    "string": ("minLength", "maxLength", "pattern", "contentEncoding", "contentMediaType"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "notMultipleOf"),
}  # fmt: skip
_KINDS = {name: kind for kind, names in _SPEAKS_OF.items() for name in names}
_NUMERIC_FORMATS = frozenset({"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float",
                              "double", "decimal", "decimal128", "single-int", "double-int"})  # fmt: skip
"""Of OpenAPI's registry of formats, those of numbers."""
_TRACES: dict[str, tuple[str, Any]] = {
    "object": ("minProperties", 0),
    "array": ("minItems", 0),
    "string": ("minLength", 0),
    "number": ("notMultipleOf", []),
}
_SAYS_TYPE = frozenset({"type", "enum", "const", "$ref"})
_CONDITIONS = ("if", "then", "else", "not")
_PARTS = ("allOf", "anyOf", "oneOf")


def implied_types(schema: dict[str, Any]) -> frozenset[str]:
    """The types that the keywords of a schema speak of, as it came or rewritten."""
    return frozenset(name for kind in _kinds(schema) for name in (NUMBER if kind == "number" else (kind,)))


def traces(schema: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """Keywords that keep what a schema, as it came, speaks of in what it has become; none where it says its type.

    Where no keyword of its own speaks of a type, those of its conditions and of what it denies do.
    """
    if not schema.keys().isdisjoint(_SAYS_TYPE):
        return {}
    kinds = _kinds(schema) or {kind for name in _CONDITIONS for kind in _kinds_within(schema.get(name))}
    return dict(_TRACES[kind] for kind in sorted(kinds - _kinds(said)))


def with_draft_3(schema: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """With the members required that say so themselves, as Draft 3 has it; later drafts give that no meaning."""
    asked = [name for name, part in _items(schema.get("properties")) if _asks_for_itself(part)]
    known = said.get("required", [])
    return {**said, "required": [*known, *(name for name in asked if name not in known)]} if asked else said


def _asks_for_itself(part: Schema) -> bool:
    return isinstance(part, dict) and part.get("required") is True


def with_spoken_names(schema: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """What a schema, as it came, has become, with the members listed that its conditions and choices ask for.

    Only beside `properties`, which close an object: where nothing else is said of others, those would never come.
    """
    if "properties" not in said or said.keys() & {"patternProperties", "additionalProperties"}:
        return said
    more: dict[str, Schema] = {name: {} for name in asked_for(schema) if name not in said["properties"]}
    return {**said, "properties": {**said["properties"], **more}} if more else said


def asked_for(schema: Schema) -> Iterator[str]:
    """The members that a schema, as it came, requires on some condition, or makes one, and says nothing else of."""
    if not isinstance(schema, dict):
        return
    for keyword in ("dependentRequired", "dependencies", "dependentSchemas"):
        for name, needed in _items(schema.get(keyword)):
            yield name
            yield from _names(needed) if isinstance(needed, list | str) else asked_for(needed)
    own = dict(_items(schema.get("properties")))
    yield from (name for name in _names(schema.get("required")) if name not in own)
    if isinstance(condition := schema.get("if"), dict):
        yield from (name for name, _ in _items(condition.get("properties")))
    for name in (*_PARTS, "if", "then", "else"):
        value = schema.get(name)
        for part in value if isinstance(value, list) else [value]:
            yield from asked_for(part)


def _items(value: Any) -> Iterable[tuple[str, Any]]:
    return value.items() if isinstance(value, dict) else ()


def _names(value: Any) -> list[str]:
    listed = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [name for name in listed if isinstance(name, str)]


def _kinds(schema: dict[str, Any]) -> set[str]:
    found = {_KINDS[name] for name in schema if name in _KINDS and not _is_draft_3(name, schema)}
    if isinstance(named := schema.get("format"), str):
        found.add("number" if named in _NUMERIC_FORMATS else "string")
    return found


def _is_draft_3(name: str, schema: dict[str, Any]) -> bool:
    """Whether it is Draft 3's `required`, which speaks of the member itself."""
    return name == "required" and isinstance(schema[name], bool)


def _kinds_within(schema: Schema) -> set[str]:
    """What a schema speaks of that holds, or does not, for the same value."""
    if not isinstance(schema, dict) or not schema.keys().isdisjoint(_SAYS_TYPE):
        return set()
    inner = [part for name in _PARTS if isinstance(schema.get(name), list) for part in schema[name]]
    inner += [schema[name] for name in _CONDITIONS if name in schema]
    return _kinds(schema).union(*map(_kinds_within, inner))
