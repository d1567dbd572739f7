"""Rows whose images are not encoded yet: how long a step works on them, and which of them wait for a step to come."""

import logging
import time
from collections.abc import Callable

from engine.execution.flight import Runner
from engine.scheduling.pacing import PrefillPacer
from engine.scheduling.scheduled import Scheduled
from engine.scheduling.sequence import Sequence

logger = logging.getLogger(__name__)

SHORTEST_SLICE = 0.005
"""Seconds of encoding beside a decoding step, where such steps are shorter still."""
LONGEST_SLICE = 0.1
"""Seconds of encoding between two looks at what has arrived."""


class Onlookers:
    """Encodes the images of scheduled rows, in slices of time."""

    def __init__(self, runner: Runner, pacer: PrefillPacer, fail: Callable[[Sequence, str], None]) -> None:
        """`fail` ends a sequence whose image cannot be encoded."""
        self.seconds = 0.0
        """Spent on encoding so far."""
        self._runner = runner
        self._pacer = pacer
        self._fail = fail

    def ready(self, rows: list[Scheduled]) -> list[Scheduled]:
        """Those whose images are encoded.

        Others wait for a step to come, so that those that decode need not wait for them: what a step takes is doubled.
        Beside a piece of a prompt, which doubles it too, half as much is done.
        """
        if not any(row.sequence.images for row in rows):
            return rows
        began = time.perf_counter()
        ready = [self._has_seen(row, 0.0) for row in rows]
        seconds = LONGEST_SLICE
        if any(row.num_tokens == 1 for row in rows):
            has_prompts = any(is_ready and row.num_tokens > 1 for row, is_ready in zip(rows, ready, strict=True))
            seconds = max(self._pacer.decode_seconds, SHORTEST_SLICE) / (2 if has_prompts else 1)
        for number, row in enumerate(rows):
            ready[number] = ready[number] or self._has_seen(row, seconds)
            if not ready[number] and not row.sequence.is_finished:
                break
        self.seconds += time.perf_counter() - began
        return [row for row, is_ready in zip(rows, ready, strict=True) if is_ready]

    def _has_seen(self, row: Scheduled, seconds: float) -> bool:
        """Whether a row's images are encoded, after so many seconds more. Where that fails, its sequence does."""
        try:
            return not row.sequence.images or self._runner.encode_images(row, seconds)
        except Exception:
            logger.exception("an image of request %d could not be encoded", row.sequence.request_id)
            self._fail(row.sequence, "an image of this request could not be encoded")
            return False
