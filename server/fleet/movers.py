"""Carries out what `Residency` has decided: engines are started, measured, put to sleep, woken and ended.

Each of these takes its time, in a task of its own. The books are right meanwhile: what a model needs is written down
before, and what it had is free only when a process has really ended.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from engine.errors import ConfigError, HeadraceError
from server.fleet.devices import CPU, DeviceMemory
from server.fleet.grants import Grants
from server.fleet.handle import EngineHandle
from server.fleet.needs import Needs
from server.fleet.policy import ModelState
from server.fleet.tasks import Tasks

logger = logging.getLogger(__name__)

BACK_SECONDS = 5.0
"""How long a GPU's memory is waited for after a process has ended."""
BACK_SHARE = 0.95
GIB = 2**30


class Movers:
    """What is being done to models. What they are granted must stand in the books before they are started or woken."""

    def __init__(
        self,
        directory: Path,
        grants: Grants,
        needs: Needs,
        tasks: Tasks,
        *,
        find: Callable[[], Mapping[str, DeviceMemory]],
        look: Callable[[], None],
        wish: Callable[[EngineHandle], None],
    ) -> None:
        """Engines have their sockets in `directory`; `find` says what memory there is now, and may take a second.

        `look` is called when the books have changed, `wish` for a model that is wanted again now that it is gone.
        """
        self.ending: set[str] = set()
        """Models that are being ended or put to sleep."""
        self.measuring: set[str] = set()
        """Models that are ready, but not known to be as small as they may be."""
        self._measured: set[str] = set()
        self._directory = directory
        self._grants = grants
        self._needs = needs
        self._tasks = tasks
        self._find = find
        self._look = look
        self._wish = wish

    def start(self, handle: EngineHandle, kv_limit: int) -> None:
        """Start an engine, whose automatic KV cache takes at most so many bytes, if it is not 0."""
        self._measured.discard(handle.name)
        self._tasks.begin(self._start(handle, kv_limit), f"start {handle.name}", to_its_end=True)

    def measure(self, handle: EngineHandle) -> None:
        """Find out what a model takes that is ready, unless that is known since it was started."""
        if handle.name not in self._measured:
            self._measured.add(handle.name)
            self.measuring.add(handle.name)
            self._tasks.begin(self._measure(handle), f"measure {handle.name}")

    def end(self, handle: EngineHandle) -> None:
        """End an engine."""
        self.ending.add(handle.name)
        handle.retire()  # now, so that no request gets hold of it before the task runs
        self._tasks.begin(self._unload(handle), f"unload {handle.name}", to_its_end=True)

    def put_away(self, handle: EngineHandle, weights: int) -> None:
        """Put a model to sleep, whose weights then take so many bytes of the host's memory."""
        self.ending.add(handle.name)
        self._grants.put_away(handle.name, weights)
        handle.retire()
        self._tasks.begin(self._put_away(handle), f"put {handle.name} to sleep")

    def wake(self, handle: EngineHandle) -> None:
        """Wake a model that sleeps."""
        self._tasks.begin(self._wake(handle), f"wake {handle.name}")

    async def _start(self, handle: EngineHandle, kv_limit: int) -> None:
        try:
            await handle.start(self._directory, kv_limit=kv_limit)
        except OSError as error:
            handle.fail(ConfigError(f"the engine process cannot be started: {error.strerror or error}"))

    async def _measure(self, handle: EngineHandle) -> None:
        assert handle.info is not None, "a ready model has it"
        try:
            need = await asyncio.to_thread(self._needs.measure, handle.config, handle.info, handle.pid)
        finally:
            self.measuring.discard(handle.name)
        if handle.name in self._grants:
            self._grants.give(handle.name, need)
        self._look()

    async def _put_away(self, handle: EngineHandle) -> None:
        try:
            asleep = await handle.sleep()
        except HeadraceError:
            await self._unload(handle)
            return
        kept = self._grants.fell_asleep(handle.name, asleep)
        logger.info(
            "model %s sleeps: %.2f GiB of %s are free, its weights take %.2f GiB of the host's memory",
            handle.name, asleep.device_bytes / GIB, kept.device, asleep.host_bytes / GIB,
        )  # fmt: skip
        self._ended(handle)

    async def _wake(self, handle: EngineHandle) -> None:
        with contextlib.suppress(HeadraceError):  # its supervision starts it anew
            await handle.wake()
        self._grants.woke(handle.name)
        self._look()

    async def _unload(self, handle: EngineHandle) -> None:
        await handle.unload()
        need = self._grants.of(handle.name)
        assert need is not None, "what is ended had been granted memory"
        self._grants.forget(handle.name)
        if need.device != CPU:
            await self._wait_for_memory(need.device)
        logger.info(
            "model %s is unloaded; %.2f GiB of %s are free again", handle.name, need.num_bytes / GIB, need.device
        )
        self._ended(handle)

    def _ended(self, handle: EngineHandle) -> None:
        """A model is not there any more; perhaps it has been asked for meanwhile."""
        self.ending.discard(handle.name)
        if handle.state is ModelState.LOADING:
            self._wish(handle)
        self._look()

    async def _wait_for_memory(self, device: str) -> None:
        """A driver takes a moment to clear up after a process."""
        expected = BACK_SHARE * self._grants.free(device)
        deadline = time.monotonic() + BACK_SECONDS
        while time.monotonic() < deadline:
            found = (await asyncio.to_thread(self._find)).get(device)
            if found is None or found.available >= expected:
                return
            await asyncio.sleep(0.2)
