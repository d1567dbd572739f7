"""The way in: a JSON schema as it was asked for, to a grammar that follows it exactly."""

from decimal import Decimal
from typing import Any

from engine.errors import RequestError
from engine.grammar.schema.document import keywords
from engine.grammar.schema.faults import Beyond, SchemaFault, Unplaced
from engine.grammar.schema.implied import implied_types
from engine.grammar.schema.relaxing import Degree, Relaxing
from engine.grammar.schema.rewrite import Rewriter
from engine.grammar.schema.strings import Strings
from engine.grammar.schema.values import ALL_TYPES, Schema
from engine.grammar.writing.document import WrittenSchema, write_schema

_MAY_CHANGE = (float, list, dict)


class UnplacedError(RequestError):
    """Some keyword cannot be followed, and the message does not say where it stands."""


def prepare_schema(
    schema: Any,
    *,
    param: str,
    part: Any = None,
    at: str = "",
    closes: bool = True,
    relaxing: Relaxing | None = None,
) -> WrittenSchema:
    """The grammar of the schema, or of a part of it at a pointer.

    With `closes`, as for generation, what the schema leaves open is narrowed (see `Closing`); without, all that is
    valid is accepted. `relaxing` says what may be left out, and is told of what is. Raises `RequestError` that names
    keyword and JSON pointer, or `UnplacedError`.
    """
    try:
        written = _written(exact(schema), exact(part), at, closes, relaxing or Relaxing())
    except Unplaced as fault:
        raise UnplacedError(f"{param}: {fault}", param=param) from None
    except SchemaFault as fault:
        raise RequestError(f"{param} {fault}", param=param) from None
    except RecursionError:
        raise RequestError(f"{param} is nested too deeply", param=param) from None
    if written is None:
        raise UnplacedError(f"{param} accepts no value at all", param=param)
    return written


def _written(schema: Any, part: Any, at: str, closes: bool, relaxing: Relaxing) -> WrittenSchema | None:
    while relaxing.degree < Degree.TYPE:
        try:
            rewriter = Rewriter(schema, closes=closes, relaxing=relaxing)
            root, definitions = rewriter.result(part, at)
            return None if root is False else write_schema(root, definitions, rewriter.strings, narrows=closes)
        except Beyond:
            # What takes too many steps takes fewer without complements.
            if not relaxing.coarsen(Degree.POSITIVE):
                raise
    return write_schema(_outermost_type(schema if part is None else part, at, closes), {}, Strings())


def _outermost_type(schema: Schema, at: str, closes: bool) -> Schema:
    if isinstance(schema, bool):
        return schema
    keys = keywords(schema, at)
    meant = implied_types(keys) if closes else frozenset[str]()
    return {"type": keys.get("type") or meant or ALL_TYPES}


def exact(value: Any) -> Any:
    """The JSON value with the decimal fractions that its binary ones are written as; itself where it has none."""
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, list):
        items = [exact(item) if isinstance(item, _MAY_CHANGE) else item for item in value]
        return value if all(one is two for one, two in zip(items, value, strict=True)) else items
    if isinstance(value, dict):
        changed = {name: new for name, item in value.items()
                   if isinstance(item, _MAY_CHANGE) and (new := exact(item)) is not item}  # fmt: skip
        return {**value, **changed} if changed else value
    return value
