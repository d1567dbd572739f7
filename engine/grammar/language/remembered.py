"""What has been made of patterns, remembered across documents, in which formats and what one generator writes recur."""

import re
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar

MAX_CHARS = 1_600
"""Of a pattern that is remembered, so that hostile ones fill no memory."""
MAX_PATTERNS = 64
_IGNORES_CASE = re.compile(r"\(\?[a-z]*i")
"""A flag under which one class of a pattern may come to a thousand ranges."""

Made = TypeVar("Made")


def remembered(make: Callable[[str], Made]) -> Callable[[str], Made]:
    """A function of a pattern that remembers what it made of the last short ones. What it makes is never changed."""
    known = lru_cache(MAX_PATTERNS)(make)

    @wraps(make)
    def found(pattern: str) -> Made:
        is_short = len(pattern) <= MAX_CHARS and not _IGNORES_CASE.search(pattern)
        return known(pattern) if is_short else make(pattern)

    return found
