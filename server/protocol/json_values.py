"""Checks on the JSON that the request's models leave untyped (schemas, template variables), and on the body's form."""

import contextlib
import json
import math
from collections.abc import Callable
from typing import Any

from server.protocol.errors import ApiError, bad_request, shorten

MAX_DEPTH = 64
MAX_KEYS_PER_OBJECT = 10_000
MAX_INTEGER = 2**63
MAX_SCHEMA_INTEGER = 10**400
"""Schemas are followed to the digit, beyond what doubles and machine words hold."""


def check_object_keys(raw: bytes) -> None:
    """Refuse a body in which an object names a key twice, or has more than `MAX_KEYS_PER_OBJECT` keys.

    Of a key named twice one parser takes the first value and another the last, so what a proxy has checked could
    differ from what is served. Bodies that are no JSON at all pass here: the parser proper has the better words.
    """
    with contextlib.suppress(ValueError, RecursionError):
        read_json(raw)


def read_json(text: str | bytes, *, param: str | None = None) -> Any:
    """The value of a JSON text, which is that of the field `param`, or the body.

    Raises `ApiError` 400 as `check_object_keys` does, `ValueError` or `RecursionError` for what is no JSON.
    """
    return json_decoder(param=param).decode(text if isinstance(text, str) else text.decode())


def json_decoder(*, param: str | None = None, parse_float: Callable[[str], float] | None = None) -> json.JSONDecoder:
    """What `read_json` reads with; `parse_float` makes numbers of texts with a point or an exponent."""
    subject = param or "The request body"

    def check_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(pairs) > MAX_KEYS_PER_OBJECT:
            raise bad_request(
                f"{subject} holds an object with {len(pairs)} keys, at most {MAX_KEYS_PER_OBJECT} are allowed",
                param=param,
            )
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    raise bad_request(f"{subject} names the key {shorten(key)} twice in one object", param=param)
                seen.add(key)
        return found

    return json.JSONDecoder(object_pairs_hook=check_pairs, parse_float=parse_float)


def check_json_value(value: Any, param: str, *, largest: int = MAX_INTEGER) -> None:
    """Refuse what JSON can spell and is of no use: NaN, infinities, halves of characters, absurd integers or depth.

    Raises `ApiError` 400 on `param`.
    """
    pending: list[tuple[Any, int]] = [(value, 1)]
    while pending:
        item, depth = pending.pop()
        if isinstance(item, dict | list):
            if depth > MAX_DEPTH:
                raise bad_request(f"{param} is nested deeper than {MAX_DEPTH} levels", param=param)
            if isinstance(item, dict):
                for key in item:
                    _check_text(key, param)
            children = item.values() if isinstance(item, dict) else item
            pending.extend((child, depth + 1) for child in children)
        elif isinstance(item, str):
            _check_text(item, param)
        else:
            _check_scalar(item, param, largest)


def _check_text(text: str, param: str) -> None:
    """Half of a surrogate pair can be escaped in JSON, and is no character that a tokenizer or a grammar could take."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise bad_request(f"{param} holds half of a surrogate pair, which is no character", param=param) from None


def _check_scalar(item: Any, param: str, largest: int) -> None:
    problem: ApiError | None = None
    if isinstance(item, float) and not math.isfinite(item):
        problem = bad_request(f"{param} must hold finite numbers only, got {item}", param=param)
    elif isinstance(item, int) and abs(item) > largest:
        limit = "64 bits" if largest == MAX_INTEGER else f"{len(str(largest)) - 1} digits"
        problem = bad_request(f"{param} holds the integer {shorten(item)}, beyond {limit}", param=param)
    if problem is not None:
        raise problem
