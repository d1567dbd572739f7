"""Regular expressions match whole texts here, so anchors at the ends of alternatives say nothing more."""

import re

_MARKS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*(?:\]|\\?\Z)|[()|]", re.DOTALL)
"""Escapes, classes, in which a bracket that comes first is one of the characters, and what parts an expression."""


def without_anchors(regex: str) -> str:
    """The expression without `^` at the start and `$` at the end of its outermost alternatives."""
    return "|".join(map(_strip, alternatives(regex)))


def _strip(regex: str) -> str:
    regex = regex.removeprefix("^")
    escapes = len(regex[:-1]) - len(regex[:-1].rstrip("\\"))
    return regex[:-1] if regex.endswith("$") and escapes % 2 == 0 else regex


def alternatives(regex: str) -> list[str]:
    """The parts between the `|` that stand in no group and no class."""
    parts, begin, depth = [], 0, 0
    for found in _MARKS.finditer(regex):
        match found[0]:
            case "(":
                depth += 1
            case ")":
                depth -= 1
            case "|" if depth == 0:
                parts.append(regex[begin : found.start()])
                begin = found.end()
    return [*parts, regex[begin:]]
