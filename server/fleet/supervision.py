"""The engine processes of one model, one after another: started, watched, and started anew after a death.

After too many deaths in a short time, or one while it loads, there is none any more until somebody starts it again.
"""

import asyncio
import contextlib
import logging
import time
from pathlib import Path
from typing import Protocol

from engine.config import EngineConfig
from engine.errors import EngineDeadError, HeadraceError
from engine.messages import EngineInfo, EngineStats, Loading
from server.fleet.deaths import Deaths, end_when_silent, stopped_after
from server.fleet.engine_process import EngineProcess
from server.fleet.policy import FleetPolicy

logger = logging.getLogger(__name__)


class Supervised(Protocol):
    """Who is told what becomes of the processes; in truth an `EngineHandle`. Only `make_ready` may raise."""

    @property
    def is_asleep(self) -> bool:
        """Whether nobody would miss the process now."""

    def note_loading(self, progress: Loading) -> None:
        """A process has come further in its load."""

    async def make_ready(self, info: EngineInfo, *, again: bool) -> None:
        """A process has loaded, `again` after a death. Raises `HeadraceError` if it is of no use."""

    def note_death(self, error: HeadraceError) -> None:
        """A process has died, and another is started in a moment."""

    def note_lost(self) -> None:
        """A process has died that nobody misses."""

    def fail(self, error: HeadraceError) -> None:
        """A process has ended, and no other is started."""


class Supervision:
    """Sees that a model has a process from `start` to `end`."""

    def __init__(self, config: EngineConfig, policy: FleetPolicy, model: Supervised) -> None:
        self.process: EngineProcess | None = None
        """The one that runs, if one does."""
        self.loads = 0
        """Loads since the server was started, without restarts."""
        self.load_seconds = 0.0
        """What the last load took, until the model was ready."""
        self.restarts = 0
        self._config = config
        self._policy = policy
        self._model = model
        self._past = EngineStats()
        """What the processes that have ended had counted."""
        self._began = 0.0
        self._has_been_ready = False
        self._deaths = Deaths(policy)
        self._task: asyncio.Task[None] | None = None

    @property
    def stats(self) -> EngineStats:
        """Gauges of the process, and counters of all that the model has had."""
        current = EngineStats() if self.process is None else self.process.client.stats
        return current.after(self._past)

    async def start(self, directory: Path, kv_limit: int) -> None:
        """Spawn a process, with its socket in `directory`, and supervise it from now on.

        Raises `OSError` if it cannot be spawned.
        """
        self._began = time.monotonic()
        self._has_been_ready = False
        self._deaths.forget()
        self.loads += 1
        self.process = await self._spawn(directory, kv_limit)
        self._task = asyncio.create_task(self._supervise(directory, kv_limit), name=f"supervise {self._config.name}")

    async def end(self) -> None:
        """End the process and its supervision. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.process is not None:
            await self.process.stop(self._policy.stop_grace)
        self._forget_process()

    def _forget_process(self) -> None:
        """It has ended; what it counted is kept."""
        if self.process is not None:
            self._past = EngineStats().after(self.stats)
        self.process = None

    async def _spawn(self, directory: Path, kv_limit: int) -> EngineProcess:
        config = self._config.with_kv_limit(kv_limit)
        process = await EngineProcess.spawn(config, directory, self._policy.command)
        process.client.on_loading = self._model.note_loading
        return process

    async def _supervise(self, directory: Path, kv_limit: int) -> None:
        while True:
            error = await self._live()
            is_missed = not self._model.is_asleep
            if self.process is not None:
                await self.process.stop(0.0)
            self._forget_process()
            if not is_missed:
                logger.error("%s while the model was asleep", error)
                self._model.note_lost()
                return
            delay = self._deaths.pause()
            if not self._has_been_ready or delay is None:
                self._model.fail(self._deaths.final(error, has_been_ready=self._has_been_ready))
                return
            self._model.note_death(error)
            logger.error("%s; starting it again in %.1f s", error, delay)
            await asyncio.sleep(delay)
            self.restarts += 1
            with contextlib.suppress(OSError):
                self.process = await self._spawn(directory, kv_limit)

    async def _live(self) -> HeadraceError:
        """One run of the process, to its end; why it ended."""
        process = self.process
        if process is None:
            return EngineDeadError(f"the engine process of model {self._config.name} could not be started")
        hang_after = self._policy.hang_after
        watchdog = asyncio.create_task(
            end_when_silent(process, hang_after, stopped_after(self._config, hang_after)),
            name=f"watchdog {self._config.name}",
        )
        try:
            return await self._serve(process)
        except HeadraceError as error:
            return error
        finally:
            watchdog.cancel()

    async def _serve(self, process: EngineProcess) -> HeadraceError:
        """What `_live` does while the process is watched. Raises `HeadraceError` if it does not load."""
        info = await process.client.wait_ready()
        await self._model.make_ready(info, again=self._has_been_ready)
        if not self._has_been_ready:
            self.load_seconds = time.monotonic() - self._began
        self._has_been_ready = True
        return process.describe(await process.wait())
