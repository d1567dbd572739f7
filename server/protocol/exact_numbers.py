"""Numbers in schemas to the digit, where a double would round them.

The request's models read a number with a point or an exponent as a double. Where a body holds one that has more digits
than a double keeps, its schemas are read once more, from the text.
"""

import json
import re
from decimal import Decimal
from typing import Any

import msgspec

_LONG = re.compile(rb"[0-9][0-9.]{15}|[eE][+-]?[0-9]{3}")
"""Some number that a double may not hold; its shortest form has at most 17 digits."""
_encode = msgspec.json.Encoder(decimal_format="number").encode


class ExactFloat(float):
    """A double that knows how it was written; to all that do not ask, a double."""

    written: str

    def __new__(cls, text: str) -> "ExactFloat":
        """The double nearest to a number's text."""
        value = super().__new__(cls, text)
        value.written = text
        return value


def exact_body(raw: bytes) -> Any:
    """A body with exact numbers, None where doubles hold all that it has or it is no JSON."""
    if not _LONG.search(raw):
        return None
    try:
        return json.loads(raw, parse_float=ExactFloat)
    except (ValueError, RecursionError):
        return None


def schema_text(schema: Any) -> str:
    """The JSON text of a schema, its numbers as they were written."""
    return _encode(_written(schema)).decode()


def _written(value: Any) -> Any:
    if isinstance(value, ExactFloat):
        return Decimal(value.written)
    if isinstance(value, dict):
        return {name: _written(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_written(item) for item in value]
    return value
