"""From a constraint as it was asked for to the text of a grammar in llguidance's form."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import llguidance

from engine.constraint import Constraint, SchemaSource
from engine.errors import RequestError
from engine.grammar.language.ecma import lark_translated
from engine.grammar.schema.nulls import without_nulls
from engine.grammar.schema.prepare import prepare_schema
from engine.grammar.schema.relaxing import Relaxing
from engine.grammar.whole import lark_terminal, whole_parts
from engine.grammar.writing.nodes import ItemsTaken, NamesTaken

MAX_EXPONENT = 400
"""Of a number in a schema, which is taken as it is written; doubles end at 1e308."""
_NULL_KEYWORD = re.compile(r":\s*null")
_OUR_RULE = re.compile(r"^\s*(schema|PATTERN)_\d+\s*(\[.*\])?\s*:", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class GrammarText:
    """A grammar in llguidance's form."""

    text: str
    names: NamesTaken = "listed"
    """Unless objects' names are listed, `repeats` has to see that none comes twice."""
    items: ItemsTaken = "any"
    """Unless arrays' items are any, it has to see that they differ where they must."""
    costly: tuple[str, ...] = ()
    """Grammars of parts of it that may be too complex to be followed, though the whole seems not to be."""


def schemas_of(constraint: Constraint) -> tuple[SchemaSource, ...]:
    """The schemas in a constraint, in the order in which `grammar_text` takes what is left out of them."""
    if constraint.kind == "json_schema":
        return (SchemaSource(param=constraint.param, schema=constraint.source, strict=constraint.strict),)
    return constraint.schemas if constraint.kind == "lark" else ()


def grammar_text(constraint: Constraint, relaxings: Sequence[Relaxing] = ()) -> GrammarText:
    """The grammar, with schemas rewritten to what the library follows exactly. Raises `RequestError`.

    `relaxings`, one for each of `schemas_of`, say what may be left out and are told of what is; without them nothing
    may.
    """
    relaxings = relaxings or [Relaxing() for _ in schemas_of(constraint)]
    param, source = constraint.param, constraint.source
    constraint.check_size()
    match constraint.kind:
        case "json_schema":
            return schema_text(load_schema(source, param), param, relaxing=relaxings[0])
        case "regex":
            return GrammarText(_expression(source, param))
        case "lark":
            return _with_schemas(constraint, relaxings)


def schema_text(
    schema: Any, param: str, *, part: Any = None, at: str = "", closes: bool = True, relaxing: Relaxing | None = None
) -> GrammarText:
    """The grammar of a JSON schema, or of the part of it at a pointer. Raises `RequestError`."""
    written = prepare_schema(schema, param=param, part=part, at=at, closes=closes, relaxing=relaxing)
    costly = tuple(map(llguidance.LLMatcher.grammar_from_lark, written.costly))
    return GrammarText(llguidance.LLMatcher.grammar_from_lark(written.text), written.names, written.items, costly)


def load_schema(text: str, param: str) -> Any:
    """The JSON value of a schema's text, without keywords that are null. Raises `RequestError`."""
    try:
        schema = json.loads(text, parse_constant=_no_constant, parse_float=_decimal)
        return without_nulls(schema) if _NULL_KEYWORD.search(text) else schema
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{param} is not valid JSON: {str(error)[:200]}", param=param) from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _decimal(text: str) -> Decimal:
    value = Decimal(text)
    if value and abs(value.adjusted()) > MAX_EXPONENT:
        raise ValueError(f"the number {text[:50]} is beyond 1e{MAX_EXPONENT} or 1e-{MAX_EXPONENT}")
    return value


def _expression(regex: str, param: str) -> str:
    parts = whole_parts(regex, param)
    if len(parts) == 1:
        return str(llguidance.LLMatcher.grammar_from_regex(parts[0]))
    return str(llguidance.LLMatcher.grammar_from_lark(f"start: TEXT\nTEXT: {lark_terminal(parts)}\n"))


def _with_schemas(constraint: Constraint, relaxings: Sequence[Relaxing]) -> GrammarText:
    if ours := _OUR_RULE.search(constraint.source):
        raise RequestError(
            f"{constraint.param} defines a rule named {ours[1]}_..., which is reserved", param=constraint.param
        )
    rules = [lark_translated(constraint.source)]
    names: set[NamesTaken] = set()
    items: set[ItemsTaken] = set()
    costly: list[str] = []
    for number, (entry, relaxing) in enumerate(zip(constraint.schemas, relaxings, strict=True)):
        schema = prepare_schema(load_schema(entry.schema, entry.param), param=entry.param, relaxing=relaxing)
        names.add(schema.names)
        items.add(schema.items)
        costly += map(llguidance.LLMatcher.grammar_from_lark, schema.costly)
        rules.append(f"schema_{number}: %lark {{\n{schema.text}}}")
    for number, pattern in enumerate(constraint.patterns):
        rules.append(f"PATTERN_{number}: {lark_terminal(whole_parts(pattern.pattern, pattern.param))}")
    text = llguidance.LLMatcher.grammar_from_lark("\n".join(rules) + "\n")
    return GrammarText(
        text,
        "few" if "few" in names else "endless" if "endless" in names else "listed",
        "few" if "few" in items else "distinct" if "distinct" in items else "any",
        tuple(costly),
    )
