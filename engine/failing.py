"""What becomes of a step that failed: smaller steps, rows that end with an error, or a process past help."""

import logging

import torch

from engine.errors import EngineDeadError
from engine.landing import Landing
from engine.scheduling.scheduled import Scheduled
from engine.scheduling.scheduler import Scheduler

logger = logging.getLogger(__name__)

NEVER_HEALS = "could not create a primitive"
"""What oneDNN says where it lacks memory for the code of a product. It says so of that shape for ever, also once there
is memory again: `python -m tests.chaos.play`, fault "failed allocation"."""


class Failing:
    """Decides whom a failure hurts: as few as can be."""

    def __init__(self, scheduler: Scheduler, landing: Landing) -> None:
        self._scheduler = scheduler
        self._landing = landing
        self.for_good: str | None = None
        """Why steps will go on failing in this process, so that another should take its place."""

    def at_launch(self, rows: list[Scheduled], error: Exception) -> None:
        """Fail all rows of a step that was not launched, unless it lacked memory and can be smaller."""
        if NEVER_HEALS in str(error):
            self.for_good = str(error).partition("\n")[0]
        if not isinstance(error, torch.OutOfMemoryError) or not self._lower_budget(rows):
            self.at_landing(rows, error)

    def at_sampling(self, rows: list[Scheduled], error: Exception) -> None:
        """Fail all rows of a step that was computed: it cannot be tried again. The next may be smaller."""
        if isinstance(error, torch.OutOfMemoryError):
            self._lower_budget(rows)
        self.at_landing(rows, error)

    def at_landing(self, rows: list[Scheduled], error: Exception) -> None:
        """Fail all rows of a step whose results did not come; where a rank has ended, none, since the process will."""
        if isinstance(error, EngineDeadError):
            self.for_good = str(error)  # whoever waits is told so when the process ends
            return
        logger.error("a step of %d rows failed", len(rows), exc_info=error)
        for row in rows:
            if row.is_current:
                self._landing.fail(row.sequence, "internal error while computing this request")

    def _lower_budget(self, rows: list[Scheduled]) -> bool:
        """After a step that lacked memory: give back what is held in vain, and make steps smaller if they can be."""
        torch.cuda.empty_cache()  # nothing where CUDA is not in use
        if not self._scheduler.lower_budget():
            return False
        logger.warning(
            "a step of %d tokens ran out of memory; from now on a step has at most %d",
            sum(row.num_tokens for row in rows),
            self._scheduler.max_batched_tokens,
        )
        return True
