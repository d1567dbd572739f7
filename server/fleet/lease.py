"""A request's hold on a model.

    lease = fleet.lease(handle)
    try:
        while not lease.is_active:
            await lease.change(seconds)
        ...
    finally:
        lease.release()

From the call on the model is wanted: it is loaded if it is not, and not ended before the lease is released. All who
want it share one load, and whoever stops waiting ends only the own wait.
"""

import asyncio
import contextlib
from collections.abc import Callable

from engine.errors import EngineStoppedError, HeadraceError, ModelLoadError
from server.fleet.handle import EngineHandle
from server.fleet.policy import ModelState

IN_VAIN = frozenset({ModelState.UNLOADED, ModelState.FAILED, ModelState.STOPPED})
"""States in which a model does not become ready by itself."""


class Lease:
    """One request's hold on one model; made by `Fleet.lease`."""

    def __init__(self, handle: EngineHandle, on_release: Callable[[], None]) -> None:
        """Takes hold at once. `on_release` is called when it is over."""
        self.handle = handle
        self._on_release = on_release
        self._changed = asyncio.Event()
        ready = handle.state is ModelState.READY and not handle.is_closed
        handle.holders.add(self, waits=not ready)

    @property
    def is_active(self) -> bool:
        """Whether the model is there for this request."""
        return self in self.handle.holders.active

    async def change(self, seconds: float) -> bool:
        """Wait for any change of the model's state or progress, up to so many seconds; whether there was one.

        Raises the reason where waiting is in vain: the model has failed, or the server ends.
        """
        if not self.is_active and self.handle.state in IN_VAIN:
            raise _reason(self.handle)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        changed = self._changed.is_set()
        self._changed.clear()
        if not self.is_active and self.handle.state in IN_VAIN:
            raise _reason(self.handle)
        return changed

    def notice(self) -> None:
        """The model has changed."""
        self._changed.set()

    def release(self) -> None:
        """Let the model go. May be called any number of times."""
        if self.handle.holders.remove(self):
            self._on_release()


def _reason(handle: EngineHandle) -> HeadraceError:
    if handle.state is ModelState.STOPPED:
        return EngineStoppedError("the server is shutting down")
    return handle.error or ModelLoadError(f"model {handle.name} was unloaded")
