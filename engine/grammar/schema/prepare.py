"""The way in: a JSON schema as it was asked for, to one that llguidance follows exactly."""

from typing import Any

from engine.errors import RequestError
from engine.grammar.schema.faults import SchemaFault
from engine.grammar.schema.rewrite import Rewriter

WHITESPACE = r"[ ]?|\n[ ]{0,20}"
"""Between the tokens of JSON: enough for compact and indented text, too little for a model to run away in."""


def prepare_schema(schema: Any, *, param: str, part: Any = None, at: str = "", closes: bool = True) -> dict[str, Any]:
    """The schema, or a part of it at a pointer, in keywords that are followed exactly.

    With `closes`, as for generation, what the schema leaves open is narrowed (see `Closing`); without, all that is
    valid is accepted. Raises `RequestError` that names keyword and JSON pointer.
    """
    try:
        rewritten = Rewriter(schema, closes=closes).result(part, at)
    except SchemaFault as fault:
        raise RequestError(f"{param} {fault}", param=param) from None
    except RecursionError:
        raise RequestError(f"{param} is nested too deeply", param=param) from None
    if rewritten is False:
        raise RequestError(f"{param} accepts no value at all", param=param)
    return {**({} if rewritten is True else rewritten), "x-guidance": {"whitespace_pattern": WHITESPACE}}
