"""Finds the keyword of a schema that the library cannot follow: it says what is wrong, but not where."""

import time
from collections.abc import Callable
from typing import Any

from engine.grammar.schema.document import parts
from engine.grammar.schema.faults import Unfollowable, because
from engine.grammar.schema.values import Schema

SEARCH_SECONDS = 0.5

Fault = Callable[[Schema, str], str | None]
"""What the library says of a part of the schema, given with its pointer; None if it follows it."""


def blamed(root: Schema, why: str, fault: Fault) -> Unfollowable | None:
    """The keyword without which the smallest part that fails as `root` does, with `why`, would not.

    None where there is no such keyword, or the search takes long.
    """
    deadline = time.process_time() + SEARCH_SECONDS
    node, at = root, ""
    pending = _parts(root, at)
    while pending:
        child, below = pending.pop(0)
        if time.process_time() > deadline:
            return None
        if isinstance(child, dict) and fault(child, below) == why:
            node, at, pending = child, below, _parts(child, below)
    if not isinstance(node, dict):
        return None
    return next((Unfollowable(at, name, because(why)) for name in _suspects(node)
                 if time.process_time() <= deadline and fault(_without(node, name), at) is None), None)  # fmt: skip


def _parts(node: Schema, at: str) -> list[tuple[Schema, str]]:
    """Definitions first, or the references to one would be blamed for it."""
    return sorted(parts(node, at), key=lambda part: not part[1].startswith((f"{at}/$defs/", f"{at}/definitions/")))


def _suspects(node: dict[str, Any]) -> list[str]:
    """`type` last: without it much is allowed that has nothing to do with what is wrong."""
    return sorted(node, key="type".__eq__)


def _without(node: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != name}
