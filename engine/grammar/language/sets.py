"""Sets of characters: sorted, disjoint, non-adjacent inclusive ranges of code points."""

from collections.abc import Iterable

Ranges = tuple[tuple[int, int], ...]

LAST = 0x10FFFF
ALL: Ranges = ((0, LAST),)


def ranges(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """The union of ranges."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(pairs):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return tuple(out)


def without(what: Ranges) -> Ranges:
    """All characters but these."""
    out, start = [], 0
    for low, high in what:
        if low > start:
            out.append((start, low - 1))
        start = high + 1
    return (*out, (start, LAST)) if start <= LAST else tuple(out)


def holds(what: Ranges, char: int) -> bool:
    """Whether a character is one of them."""
    return any(low <= char <= high for low, high in what)


def common(one: Ranges, two: Ranges) -> Ranges:
    """The characters of both."""
    return without(ranges([*without(one), *without(two)]))
