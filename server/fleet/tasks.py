"""Tasks that nobody waits for: held until they have ended, and what goes wrong in one is in the log."""

import asyncio
import logging
from collections.abc import Coroutine

logger = logging.getLogger(__name__)


class Tasks:
    """What runs beside in one event loop."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], bool] = {}
        """With whether each is to come to its end."""

    def begin(self, work: Coroutine[None, None, None], name: str, *, to_its_end: bool = False) -> "asyncio.Task[None]":
        """Run a coroutine; `to_its_end` is for what must not be cut short when all is closed."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks[task] = to_its_end
        task.add_done_callback(self._finished)
        return task

    async def wait(self) -> None:
        """Wait for all that run now. Raises what the first to fail raised."""
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """Cancel all but those that are to come to their end, and wait for all. Idempotent."""
        for task, to_its_end in self._tasks.items():
            if not to_its_end:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _finished(self, task: "asyncio.Task[None]") -> None:
        del self._tasks[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s failed unexpectedly", task.get_name(), exc_info=error)
