"""An event loop in a thread of its own, for those who write without `await`."""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for callers in other threads. `close` it at the end."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="headrace", daemon=True)
        self._thread.start()

    @property
    def is_open(self) -> bool:
        """Whether it has not been closed."""
        return not self._loop.is_closed()

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Begin; the future's `cancel` ends it early."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result; whatever interrupts the wait, such as ctrl-C, cancels the work."""
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, source: AsyncIterator[T]) -> Iterator[T]:
        """What an asynchronous generator yields; where the caller stops, it is closed."""
        found: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

        async def pump() -> None:
            try:
                async for item in source:
                    found.put((True, item))
                found.put((False, None))
            except BaseException as error:
                found.put((False, error))
                raise
            finally:
                await source.aclose()  # type: ignore[attr-defined]

        future = self.submit(pump())
        try:
            while (got := found.get())[0]:
                yield got[1]
            if got[1] is not None:
                raise got[1]
        finally:
            future.cancel()

    def close(self) -> None:
        """End the loop and its thread; what still runs in it is cancelled. Idempotent."""
        if self.is_open:
            asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


async def _cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
