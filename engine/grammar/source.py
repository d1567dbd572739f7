"""From a constraint as it was asked for to the text of a grammar in llguidance's form."""

import json
import re
from decimal import Decimal
from typing import Any

import llguidance

from engine.constraint import Constraint
from engine.errors import RequestError
from engine.grammar.anchors import without_anchors
from engine.grammar.language.ecma import lark_translated, translated
from engine.grammar.schema.prepare import prepare_schema

MAX_SOURCE_CHARS = 2_000_000
MAX_EXPONENT = 400
"""Of a number in a schema, which is taken as it is written; doubles end at 1e308."""
_SCHEMA_RULE = re.compile(r"^\s*schema_\d+\s*(\[.*\])?\s*:", re.MULTILINE)


def grammar_text(constraint: Constraint) -> str:
    """The grammar, with schemas rewritten to what the library follows exactly. Raises `RequestError`."""
    param, source = constraint.param, constraint.source
    size = len(source) + sum(len(schema.schema) for schema in constraint.schemas)
    if size > MAX_SOURCE_CHARS:
        raise RequestError(f"{param} has {size} characters, at most {MAX_SOURCE_CHARS} are allowed", param=param)
    match constraint.kind:
        case "json_schema":
            grammar = schema_text(load_schema(source, param), param)
        case "regex":
            grammar = llguidance.LLMatcher.grammar_from_regex(without_anchors(translated(source)))
        case "lark":
            grammar = llguidance.LLMatcher.grammar_from_lark(_with_schemas(constraint))
    return str(grammar)


def schema_text(schema: Any, param: str, *, part: Any = None, at: str = "", closes: bool = True) -> str:
    """The grammar of a JSON schema, or of the part of it at a pointer. Raises `RequestError`."""
    written = prepare_schema(schema, param=param, part=part, at=at, closes=closes)
    return str(llguidance.LLMatcher.grammar_from_lark(written.text))


def load_schema(text: str, param: str) -> Any:
    """The JSON value of a schema's text. Raises `RequestError`."""
    try:
        return json.loads(text, parse_constant=_no_constant, parse_float=_decimal)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{param} is not valid JSON: {str(error)[:200]}", param=param) from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _decimal(text: str) -> Decimal:
    value = Decimal(text)
    if value and abs(value.adjusted()) > MAX_EXPONENT:
        raise ValueError(f"the number {text[:50]} is beyond 1e{MAX_EXPONENT} or 1e-{MAX_EXPONENT}")
    return value


def _with_schemas(constraint: Constraint) -> str:
    if _SCHEMA_RULE.search(constraint.source):
        raise RequestError(
            f"{constraint.param} defines a rule named schema_..., which is reserved", param=constraint.param
        )
    rules = [lark_translated(constraint.source)]
    for number, entry in enumerate(constraint.schemas):
        schema = prepare_schema(load_schema(entry.schema, entry.param), param=entry.param)
        rules.append(f"schema_{number}: %lark {{\n{schema.text}}}")
    return "\n".join(rules) + "\n"
