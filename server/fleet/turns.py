"""Sees when models take turns in memory that is too small for them, and says what would help."""

import logging
from collections import deque
from collections.abc import Mapping

from server.fleet.needs import Need

logger = logging.getLogger(__name__)

SOON_SECONDS = 120.0
"""A model that is loaded again so soon after it was ended for another has been ended too early."""
TURNS = 3
"""So many of these within as much time are said."""
QUIET_SECONDS = 300.0
"""Between two such lines."""
GIB = 2**30


class Turns:
    """Counts loads that would not have been needed with more memory."""

    def __init__(self) -> None:
        self._ended: dict[str, float] = {}
        self._again: deque[tuple[float, str]] = deque(maxlen=TURNS)
        self._last_line = float("-inf")

    def ended(self, name: str, now: float) -> None:
        """A model was ended to make room."""
        self._ended[name] = now

    def loaded(self, name: str, now: float, need: Need, budgets: Mapping[str, int]) -> None:
        """A model is loaded, which is granted so much."""
        ended = self._ended.pop(name, None)
        if ended is None or now - ended > SOON_SECONDS:
            return
        self._again.append((now, name))
        is_often = len(self._again) == TURNS and now - self._again[0][0] <= SOON_SECONDS
        if is_often and now - self._last_line >= QUIET_SECONDS:
            self._last_line = now
            names = sorted({name for _, name in self._again})
            logger.warning(
                "models take turns (%s): %s is loaded again %.0f s after it was ended for another. It has %.2f GiB, of"
                " which %.2f GiB are its KV cache, and all models together have %.2f GiB of %s. What helps: `memory` in"
                " models.yaml, so that KV caches are small enough for several models, a smaller `context` with it, or"
                " a larger --memory-budget",
                ", ".join(names), name, now - ended, need.num_bytes / GIB, need.kv / GIB,
                budgets[need.device] / GIB, need.device,
            )  # fmt: skip
