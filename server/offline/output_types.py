"""Outlines' output types as a request's `response_format`: `Literal`, pydantic models, `Regex`, `JsonSchema` and more.

What they mean is Outlines' own business (`headrace[outlines]`); a schema goes to the model as a schema, everything else
as the regular expression that Outlines makes of it.
"""

import json
from typing import Any

from engine.errors import ConfigError


def response_format(output_type: Any) -> dict[str, Any]:
    """The format that answers are to have. Raises `ConfigError` without Outlines, or if the type is none of its."""
    try:
        from outlines.types.dsl import CFG, JsonSchema, python_types_to_terms, to_regex
    except ImportError as error:
        raise ConfigError("output types are Outlines' own", hint="pip install 'headrace[outlines]'") from error
    try:
        term = python_types_to_terms(output_type)
        if isinstance(term, JsonSchema):
            schema = {"name": "output", "schema": json.loads(term.schema)}
            return {"type": "json_schema", "json_schema": schema}
        if isinstance(term, CFG):
            return {"type": "grammar", "value": term.definition}
        return {"type": "regex", "value": to_regex(term)}
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ConfigError(f"{output_type!r} is no output type of Outlines: {error}") from error
