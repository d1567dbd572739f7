"""Which schemas the outlines_core library translates to an expression that says no more than they do.

It reads one keyword of a schema object, the first of its own order, and passes over what stands beside it. A property's
name and a pattern go into the expression as they are, so what JSON would escape in them gives text that is no JSON.
"""

import re
from collections.abc import Iterator
from typing import Any

from engine.errors import RequestError
from engine.grammar.schema.document import keywords, parts
from engine.grammar.schema.faults import SchemaFault, Unfollowable
from engine.grammar.schema.strings import Strings
from engine.grammar.schema.values import ALL_TYPES, type_of

_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs", "definitions", "x-guidance"}
)
_TYPED = {"type", "minLength", "maxLength", "pattern", "items", "minItems", "maxItems", "additionalProperties"}
_BESIDE: dict[str, set[str]] = {
    "properties": {"type", "required", "additionalProperties"},
    "anyOf": set(),
    "prefixItems": {"type"},
    "enum": {"type"},
    "const": {"type"},
    "$ref": set(),
    "type": _TYPED,
}
"""Keyword that is read → what may stand beside it; in the library's order."""
_KNOWN = {"required", *_BESIDE, *_TYPED}
_ESCAPED = r'["\\\x00-\x1f\x7f-\x9f]'
_NEEDS_ESCAPE = re.compile(_ESCAPED)
_BACKEND = "by the constraint backend outlines_core"


def check_schema(schema: Any, param: str) -> None:
    """Raise `RequestError`, with keyword and JSON pointer, for a schema that would not be followed to the letter."""
    strings = Strings()
    stack: list[tuple[Any, str]] = [(schema, "")]
    try:
        while stack:
            part, at = stack.pop()
            if not isinstance(part, bool):  # which the library refuses itself where it would matter
                _check_object(part, at, strings)
                stack += parts(part, at)
    except SchemaFault as fault:
        raise RequestError(f"{param} {fault}", param=param) from None


def _check_object(schema: Any, at: str, strings: Strings) -> None:
    keys = keywords(schema, at)
    given = [name for name in schema if name not in _ANNOTATIONS]
    unknown = next((name for name in given if name not in _KNOWN), None)
    if unknown is not None:
        raise Unfollowable(at, unknown, f"is not supported {_BACKEND}")
    read = next((name for name in _BESIDE if name in given), None)
    beside = next((name for name in given if name != read and name not in _BESIDE.get(read or "", ())), None)
    if beside is not None:
        where = f"beside {read!r}" if read is not None else "without 'properties' or 'type'"
        raise Unfollowable(at, beside, f"is not followed {where} {_BACKEND}")
    if "pattern" in given:
        if "minLength" in given or "maxLength" in given:
            raise Unfollowable(at, "pattern", f"is not followed beside lengths {_BACKEND}")
        if not strings.disjoint(keys["pattern"], _ESCAPED):
            why = f"that has no anchors, or matches what JSON escapes, is not followed {_BACKEND}"
            raise Unfollowable(at, "pattern", why)
    _check_values(schema, keys, at)


def _check_values(schema: dict[str, Any], keys: dict[str, Any], at: str) -> None:
    """What the library takes without a look: names, listed values, and the types these must have."""
    types = keys.get("type")
    if "properties" in keys:
        if types is not None and types != {"object"}:
            raise Unfollowable(at, "type", f"is not followed beside 'properties' {_BACKEND}")
        if any(map(_NEEDS_ESCAPE.search, keys["properties"])):
            raise Unfollowable(at, "properties", f"with names that JSON escapes are not followed {_BACKEND}")
        if not keys["properties"].keys() >= set(keys.get("required", ())):
            raise Unfollowable(at, "required", f"of names without a schema is not followed {_BACKEND}")
    if "prefixItems" in keys and types not in (None, {"array"}):
        raise Unfollowable(at, "type", f"is not followed beside 'prefixItems' {_BACKEND}")
    if "enum" in keys:
        name = "enum" if "enum" in schema else "const"
        if not keys["enum"] or any(type_of(value) not in keys.get("type", ALL_TYPES) for value in keys["enum"]):
            raise Unfollowable(at, name, f"without values, or with some of other types, is not followed {_BACKEND}")
        if any(map(_NEEDS_ESCAPE.search, _names(keys["enum"]))):
            raise Unfollowable(at, name, f"with names that JSON escapes is not followed {_BACKEND}")


def _names(value: Any) -> Iterator[str]:
    """The names of all members in a JSON value."""
    if isinstance(value, dict):
        yield from value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _names(child)
