"""JSON Schemas as clients give them: as a value or as its text, bare or still in OpenAI's object around them."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, WithJsonSchema

from server.protocol.errors import bad_request, shorten
from server.protocol.exact_numbers import ExactFloat
from server.protocol.json_values import json_decoder

_AROUND = frozenset({"name", "description", "strict"})
"""What stands beside a schema in its wrapper; of them JSON Schema has `description` alone."""
_INSIDE = ("schema", "value")


def _is_schema_or_text(value: Any) -> Any:
    if not isinstance(value, dict | str | bool | None):
        raise ValueError(f"must be a JSON Schema, or its text, got {shorten(value)}")
    return value


SchemaValue = Annotated[
    Any, AfterValidator(_is_schema_or_text), WithJsonSchema({"type": ["object", "boolean", "string", "null"]})
]
"""Where a schema may stand."""


@dataclass(frozen=True, slots=True)
class GivenSchema:
    """A schema that was found in what was given."""

    schema: dict[str, Any] | bool
    place: tuple[str, ...] = ()
    """The keys that lead to it."""
    strict: bool | None = None
    """What its wrapper says; None where there is none, or it says nothing."""


def read_schema(value: Any, param: str) -> GivenSchema:
    """The schema in the value of the field `param`. Raises `ApiError` 400 for text that is none."""
    place: tuple[str, ...] = ()
    strict: bool | None = None
    while True:
        if isinstance(value, str):
            value = _parsed(value, ".".join((param, *place)))
        key = _wrapped_under(value)
        if key is None:
            return GivenSchema(value, place, strict)
        if strict is None:
            strict = value.get("strict")
        value, place = value[key], (*place, key)


def of_object(schema: dict[str, Any] | bool, param: str, why: str) -> dict[str, Any]:
    """The schema of those of its values that are objects. Raises `ApiError` 400, for the reason `why`, without any."""
    if schema is False:
        raise bad_request(f"{param} must allow objects, {why}, got false", param=param)
    if schema is True:
        return {"type": "object"}
    kind = schema.get("type")
    if kind is None or kind == "object" or (isinstance(kind, list) and "object" in kind):
        return {"type": "object"} | schema | {"type": "object"}
    raise bad_request(f"{param}.type must be 'object', {why}, got {shorten(kind)}", param=f"{param}.type")


def _wrapped_under(value: Any) -> str | None:
    """The key under which a schema stands in its wrapper, None for what is no wrapper.

    None of a wrapper's keys but `description` means anything to JSON Schema: read as a schema, it would allow all.
    """
    if not isinstance(value, dict) or not isinstance(value.get("strict"), bool | None):
        return None
    others = value.keys() - _AROUND
    key = next(iter(others)) if len(others) == 1 else None
    return key if key in _INSIDE and isinstance(value[key], dict | bool | str) else None


def _parsed(text: str, param: str) -> dict[str, Any] | bool:
    try:
        schema = json_decoder(param=param, parse_float=ExactFloat).decode(text)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict | bool):
        raise bad_request(f"{param} must be a JSON Schema, or its text, and is text of another kind", param=param)
    return schema
