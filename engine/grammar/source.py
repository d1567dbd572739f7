"""From a constraint as it was asked for to the text of a grammar in llguidance's form."""

import json
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import llguidance

from engine.constraint import Constraint
from engine.errors import RequestError
from engine.grammar.anchors import without_anchors
from engine.grammar.language.ecma import lark_translated, translated
from engine.grammar.schema.prepare import prepare_schema
from engine.grammar.writing.nodes import NamesTaken

MAX_SOURCE_CHARS = 2_000_000
MAX_EXPONENT = 400
"""Of a number in a schema, which is taken as it is written; doubles end at 1e308."""
_SCHEMA_RULE = re.compile(r"^\s*schema_\d+\s*(\[.*\])?\s*:", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class GrammarText:
    """A grammar in llguidance's form."""

    text: str
    names: NamesTaken = "listed"
    """Unless objects' names are listed, `repeats` has to see that none comes twice."""


def grammar_text(constraint: Constraint) -> GrammarText:
    """The grammar, with schemas rewritten to what the library follows exactly. Raises `RequestError`."""
    param, source = constraint.param, constraint.source
    size = len(source) + sum(len(schema.schema) for schema in constraint.schemas)
    if size > MAX_SOURCE_CHARS:
        raise RequestError(f"{param} has {size} characters, at most {MAX_SOURCE_CHARS} are allowed", param=param)
    match constraint.kind:
        case "json_schema":
            return schema_text(load_schema(source, param), param)
        case "regex":
            return GrammarText(llguidance.LLMatcher.grammar_from_regex(without_anchors(translated(source))))
        case "lark":
            return _with_schemas(constraint)


def schema_text(schema: Any, param: str, *, part: Any = None, at: str = "", closes: bool = True) -> GrammarText:
    """The grammar of a JSON schema, or of the part of it at a pointer. Raises `RequestError`."""
    written = prepare_schema(schema, param=param, part=part, at=at, closes=closes)
    return GrammarText(llguidance.LLMatcher.grammar_from_lark(written.text), written.names)


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


def _with_schemas(constraint: Constraint) -> GrammarText:
    if _SCHEMA_RULE.search(constraint.source):
        raise RequestError(
            f"{constraint.param} defines a rule named schema_..., which is reserved", param=constraint.param
        )
    rules = [lark_translated(constraint.source)]
    names: set[NamesTaken] = set()
    for number, entry in enumerate(constraint.schemas):
        schema = prepare_schema(load_schema(entry.schema, entry.param), param=entry.param)
        names.add(schema.names)
        rules.append(f"schema_{number}: %lark {{\n{schema.text}}}")
    text = llguidance.LLMatcher.grammar_from_lark("\n".join(rules) + "\n")
    return GrammarText(text, "few" if "few" in names else "endless" if "endless" in names else "listed")
