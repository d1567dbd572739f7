"""Outlines' output types as fields of a request: `Literal`, pydantic models, `Regex`, `JsonSchema` and more.

What they mean is Outlines' own business (`headrace[outlines]`); a schema goes to the model as a schema, a grammar as a
grammar, everything else as the regular expression that Outlines makes of it.
"""

import json
from typing import Any

from engine.errors import ConfigError


def constraint_fields(output_type: Any) -> dict[str, Any]:
    """The field that holds answers to a type. Raises `ConfigError` without Outlines, or if the type is none of its."""
    try:
        from outlines.types.dsl import CFG, JsonSchema, python_types_to_terms, to_regex
    except ImportError as error:
        raise ConfigError(
            "output types are Outlines' own",
            hint="it comes with headrace[outlines]: .venv/bin/pip install -e '.[outlines]'",
        ) from error
    try:
        term = python_types_to_terms(output_type)
        if isinstance(term, JsonSchema):
            schema = {"name": "output", "schema": json.loads(term.schema)}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        if isinstance(term, CFG):
            return {"grammar": term.definition}
        return {"response_format": {"type": "regex", "value": to_regex(term)}}
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ConfigError(f"{output_type!r} is no output type of Outlines: {error}") from error
