"""The way in: a JSON schema as it was asked for, to a grammar that follows it exactly."""

from decimal import Decimal
from typing import Any

from engine.errors import RequestError
from engine.grammar.schema.faults import SchemaFault
from engine.grammar.schema.rewrite import Rewriter
from engine.grammar.writing.document import WrittenSchema, write_schema


def prepare_schema(schema: Any, *, param: str, part: Any = None, at: str = "", closes: bool = True) -> WrittenSchema:
    """The grammar of the schema, or of a part of it at a pointer.

    With `closes`, as for generation, what the schema leaves open is narrowed (see `Closing`); without, all that is
    valid is accepted. Raises `RequestError` that names keyword and JSON pointer.
    """
    try:
        rewriter = Rewriter(exact(schema), closes=closes)
        root, definitions = rewriter.result(part, at)
        written = None if root is False else write_schema(root, definitions, rewriter.strings)
    except SchemaFault as fault:
        raise RequestError(f"{param} {fault}", param=param) from None
    except RecursionError:
        raise RequestError(f"{param} is nested too deeply", param=param) from None
    if written is None:
        raise RequestError(f"{param} accepts no value at all", param=param)
    return written


def exact(value: Any) -> Any:
    """The JSON value with the decimal fractions that its binary ones are written as; itself where it has none."""
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, list):
        items = [exact(item) for item in value]
        return value if all(one is two for one, two in zip(items, value, strict=True)) else items
    if isinstance(value, dict):
        members = {name: exact(item) for name, item in value.items()}
        return value if all(members[name] is value[name] for name in value) else members
    return value
