"""From a constraint as it was asked for to the text of a grammar in llguidance's form."""

import json
import math
import re
from typing import Any

import llguidance

from engine.constraint import Constraint
from engine.errors import RequestError
from engine.grammar.language.ecma import lark_translated
from engine.grammar.schema.prepare import prepare_schema
from engine.grammar.whole import lark_terminal, whole_parts

MAX_SOURCE_CHARS = 2_000_000
_OUR_RULE = re.compile(r"^\s*(schema|PATTERN)_\d+\s*(\[.*\])?\s*:", re.MULTILINE)


def grammar_text(constraint: Constraint) -> str:
    """The grammar, with schemas rewritten to what the library follows exactly. Raises `RequestError`."""
    param, source = constraint.param, constraint.source
    size = len(source) + sum(len(schema.schema) for schema in constraint.schemas)
    size += sum(len(pattern.pattern) for pattern in constraint.patterns)
    if size > MAX_SOURCE_CHARS:
        raise RequestError(f"{param} has {size} characters, at most {MAX_SOURCE_CHARS} are allowed", param=param)
    match constraint.kind:
        case "json_schema":
            grammar = schema_text(load_schema(source, param), param)
        case "regex":
            grammar = _expression(source, param)
        case "lark":
            grammar = llguidance.LLMatcher.grammar_from_lark(_with_schemas(constraint))
    return str(grammar)


def schema_text(schema: Any, param: str, *, part: Any = None, at: str = "", closes: bool = True) -> str:
    """The grammar of a JSON schema, or of the part of it at a pointer. Raises `RequestError`."""
    prepared = prepare_schema(schema, param=param, part=part, at=at, closes=closes)
    return str(llguidance.LLMatcher.grammar_from_json_schema(json.dumps(prepared)))


def load_schema(text: str, param: str) -> Any:
    """The JSON value of a schema's text. Raises `RequestError`."""
    try:
        return json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{param} is not valid JSON: {str(error)[:200]}", param=param) from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number is too large")
    return value


def _expression(regex: str, param: str) -> str:
    parts = whole_parts(regex, param)
    if len(parts) == 1:
        return str(llguidance.LLMatcher.grammar_from_regex(parts[0]))
    return str(llguidance.LLMatcher.grammar_from_lark(f"start: TEXT\nTEXT: {lark_terminal(parts)}\n"))


def _with_schemas(constraint: Constraint) -> str:
    if ours := _OUR_RULE.search(constraint.source):
        raise RequestError(
            f"{constraint.param} defines a rule named {ours[1]}_..., which is reserved", param=constraint.param
        )
    rules = [lark_translated(constraint.source)]
    for number, entry in enumerate(constraint.schemas):
        schema = prepare_schema(load_schema(entry.schema, entry.param), param=entry.param)
        rules.append(f"schema_{number}: %json {json.dumps(schema)}")
    for number, pattern in enumerate(constraint.patterns):
        rules.append(f"PATTERN_{number}: {lark_terminal(whole_parts(pattern.pattern, pattern.param))}")
    return "\n".join(rules) + "\n"
