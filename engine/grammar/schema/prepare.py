"""The way in: a JSON schema as it was asked for, to one that llguidance follows exactly."""

from typing import Any

from engine.errors import RequestError
from engine.grammar.schema.algebra import written
from engine.grammar.schema.closing import implied_types
from engine.grammar.schema.document import keywords
from engine.grammar.schema.faults import Beyond, SchemaFault
from engine.grammar.schema.relaxing import Degree, Relaxing
from engine.grammar.schema.rewrite import Rewriter
from engine.grammar.schema.strings import Strings
from engine.grammar.schema.values import ALL_TYPES, Schema

WHITESPACE = r"[ ]?|\n[ ]{0,20}"
"""Between the tokens of JSON: enough for compact and indented text, too little for a model to run away in."""


def prepare_schema(
    schema: Any,
    *,
    param: str,
    part: Any = None,
    at: str = "",
    closes: bool = True,
    relaxing: Relaxing | None = None,
) -> dict[str, Any]:
    """The schema, or a part of it at a pointer, in keywords that are followed exactly.

    With `closes`, as for generation, what the schema leaves open is narrowed (see `Closing`); without, all that is
    valid is accepted. `relaxing` says what may be left out, and is told of what is. Raises `RequestError` that names
    keyword and JSON pointer.
    """
    try:
        rewritten = _rewritten(schema, part, at, closes, relaxing or Relaxing())
    except SchemaFault as fault:
        raise RequestError(f"{param} {fault}", param=param) from None
    except RecursionError:
        raise RequestError(f"{param} is nested too deeply", param=param) from None
    if rewritten is False:
        raise RequestError(f"{param} accepts no value at all", param=param)
    return {**({} if rewritten is True else rewritten), "x-guidance": {"whitespace_pattern": WHITESPACE}}


def _rewritten(schema: Any, part: Any, at: str, closes: bool, relaxing: Relaxing) -> Schema:
    while relaxing.degree < Degree.TYPE:
        try:
            return Rewriter(schema, closes=closes, relaxing=relaxing).result(part, at)
        except Beyond:
            # What takes too many steps takes fewer without complements.
            if not relaxing.coarsen(Degree.POSITIVE):
                raise
    return _outermost_type(schema if part is None else part, at, closes)


def _outermost_type(schema: Schema, at: str, closes: bool) -> Schema:
    if isinstance(schema, bool):
        return schema
    keys = keywords(schema, at)
    meant = implied_types(keys) if closes else frozenset[str]()
    return written({"type": keys.get("type") or meant or ALL_TYPES}, Strings())
