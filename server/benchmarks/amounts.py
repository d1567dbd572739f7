"""What an option of a measurement may be: numbers, and objects of JSON. All raise `argparse.ArgumentTypeError`."""

import argparse
import json
import math
from typing import Any


def count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text!r}")
    return int(text)


def whole(text: str) -> int:
    """A whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, 0 or more, got {text!r}")
    return int(text)


def positive(text: str) -> float:
    """A number above 0: of seconds, of milliseconds, of requests a second."""
    number = _finite(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return number


def not_negative(text: str) -> float:
    """A number that may be 0, such as of seconds."""
    number = _finite(text)
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"must be a number, 0 or more, got {text!r}")
    return number


def _finite(text: str) -> float:
    """The number that a text is; not a number (nan) where it is none or has no end."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def json_object(text: str) -> dict[str, Any]:
    """An object of JSON."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be an object of JSON, got {text!r}: {error}") from error
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"must be an object of JSON, got {text!r}")
    return found


def size_of(text: str) -> tuple[int, int]:
    """Width and height of `1024x768`."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and min(int(width), int(height)) > 0):
        raise argparse.ArgumentTypeError(f"must be pixels such as 1024x768, got {text!r}")
    return int(width), int(height)
