"""What two rewritten schemas together say of an object's members, in one set of keywords."""

from collections.abc import Callable
from typing import Any

from engine.grammar.language.expression import LanguageError
from engine.grammar.schema.faults import Unfollowable
from engine.grammar.schema.strings import Strings, overlapping
from engine.grammar.schema.values import Schema

MAX_PATTERNS = 8
KEYWORDS = frozenset({"properties", "patternProperties", "additionalProperties"})
Join = Callable[..., Schema]


def join_members(one: dict[str, Any], two: dict[str, Any], strings: Strings, all_of: Join) -> dict[str, Any] | None:
    """`properties`, `patternProperties` and `additionalProperties` that say both; None where they cannot be had."""
    patterns = list({**one.get("patternProperties", {}), **two.get("patternProperties", {})})
    both = (one, two)
    out: dict[str, Any] = {}
    try:
        if len(patterns) > MAX_PATTERNS:
            return None
        cells = strings.cells(patterns) if len(patterns) > 1 else [(pattern, [0]) for pattern in patterns]
        if cells:
            out["patternProperties"] = {
                cell: all_of(*(part for side in both for part in _of_cell(side, [patterns[at] for at in positions])))
                for cell, positions in cells
            }
        if any("additionalProperties" in side for side in both):
            out["additionalProperties"] = all_of(*(side.get("additionalProperties", {}) for side in both))
        forbidden = out.get("additionalProperties") is False and not cells
        named: dict[str, Schema] = {}
        for name in {**one.get("properties", {}), **two.get("properties", {})}:
            joined = all_of(*(part for side in both for part in _of_name(side, name, strings)))
            if joined is not False or not forbidden:
                named[name] = joined
        if named:
            out["properties"] = named
    except LanguageError:
        return None
    return out


def _of_cell(side: dict[str, Any], patterns: list[str]) -> list[Schema]:
    mine = side.get("patternProperties", {})
    return [mine[pattern] for pattern in patterns if pattern in mine] or [side.get("additionalProperties", {})]


def _of_name(side: dict[str, Any], name: str, strings: Strings) -> list[Schema]:
    parts = [side["properties"][name]] if name in side.get("properties", {}) else []
    parts += [part for pattern, part in side.get("patternProperties", {}).items() if strings.finds(pattern, name)]
    return parts or [side.get("additionalProperties", {})]


def apart(patterns: dict[str, Schema], strings: Strings, all_of: Join, at: str) -> dict[str, Schema]:
    """Patterns of which no name matches two; llguidance follows no others. Raises `Unfollowable`."""
    if not overlapping(strings, patterns):
        return patterns
    try:
        if len(patterns) > MAX_PATTERNS:
            raise LanguageError("there are too many")
        parts = list(patterns.values())
        return {
            pattern: all_of(*(parts[position] for position in positions))
            for pattern, positions in strings.cells(list(patterns))
        }
    except LanguageError as error:
        raise Unfollowable(at, "patternProperties", f"that overlap cannot be followed: {error}") from None
