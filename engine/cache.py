"""Where Headrace keeps what it can make again, and how a slow step tells of its progress."""

import os
from collections.abc import Callable
from pathlib import Path

Progress = Callable[[str, float | None], None]
"""Called with a short phrase and the share that is done, 0 to 1, or None where it cannot be told."""


def no_progress(stage: str, fraction: float | None) -> None:
    """A `Progress` that tells nobody."""


def cache_dir() -> Path:
    """`$HEADRACE_CACHE`, else `headrace` in the user's cache directory."""
    if named := os.environ.get("HEADRACE_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "headrace"
