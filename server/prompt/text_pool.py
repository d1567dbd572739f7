"""Processes for long texts.

Reading, rendering and tokenising megabytes holds the interpreter's lock for seconds, and the memory it took stays with
the process that did it. So what is long is done elsewhere, by processes that are few, bounded in time and memory, that
can be killed, and that end: after each large body, and when there is nothing to do. Ordinary bodies overtake
large ones, which never have all the processes.
"""

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import AsyncIterator

from server.prompt.text_process import RETRY_SECONDS, TextPolicy, TextProcess, shutting_down
from server.protocol.errors import overloaded

CLOSE_POLL_SECONDS = 0.01


class TextPool:
    """The processes of one server. Nothing is started before it is needed."""

    def __init__(self, policy: TextPolicy | None = None) -> None:
        self.policy = policy or TextPolicy()
        self._idle: list[TextProcess] = []
        self._timers: dict[TextProcess, asyncio.TimerHandle] = {}
        self._all: set[TextProcess] = set()
        self._waiting: list[tuple[bool, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._busy = {False: 0, True: 0}
        """By whether the body is large."""
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def num_processes(self) -> int:
        """How many there are, busy or not."""
        return len(self._all)

    @contextlib.asynccontextmanager
    async def process(self, num_bytes: int) -> AsyncIterator[TextProcess]:
        """A process for a body of this size, for as long as the `with` block takes.

        Raises `ApiError` 503 where none is free in time or none can be started.
        """
        is_large = num_bytes > self.policy.large_bytes
        await self._wait_for_turn(is_large)
        process: TextProcess | None = None
        try:
            process = await self._take(is_large)
            yield process
        finally:
            if process is not None:
                self._give_back(process, is_large)
            self._busy[is_large] -= 1
            self._wake()

    async def close(self) -> None:
        """End all processes, and with 503 the requests that have or await one. Idempotent."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        idle, self._idle = self._idle, []
        for _, _, turn in self._waiting:
            if not turn.done():
                turn.set_exception(shutting_down())
        for process in idle:
            self._end_soon(process)
        for process in self._all:
            process.stop()
        while self._all:
            await asyncio.sleep(CLOSE_POLL_SECONDS)

    async def _wait_for_turn(self, is_large: bool) -> None:
        if self._closed:
            raise shutting_down()
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (is_large, next(self._numbers), turn))
        self._wake()
        try:
            async with asyncio.timeout(self.policy.wait_seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled() and turn.exception() is None:  # its turn came at the same moment
                self._busy[is_large] -= 1
            turn.cancel()
            self._wake()
            if isinstance(error, TimeoutError):
                raise overloaded(
                    "Too many large requests are being read", retry_after=RETRY_SECONDS, reason="long_texts"
                ) from None
            raise

    def _wake(self) -> None:
        """Let those whose turn has come go on."""
        large = max(1, self.policy.processes - 1)
        while self._waiting and sum(self._busy.values()) < self.policy.processes:
            is_large, _, turn = self._waiting[0]
            if is_large and self._busy[True] >= large and not turn.done():
                return
            heapq.heappop(self._waiting)
            if not turn.done():
                self._busy[is_large] += 1
                turn.set_result(None)

    async def _take(self, is_large: bool) -> TextProcess:
        if self._idle and not is_large:
            process = self._idle.pop()
            self._timers.pop(process).cancel()
            return process
        if self._idle and len(self._idle) + sum(self._busy.values()) > self.policy.processes:
            self._timers[self._idle[-1]].cancel()
            self._end_idle(self._idle[-1])
        try:
            process = await TextProcess.start(self.policy, is_large=is_large)
        except OSError as error:
            raise overloaded(
                "No process can be started for this request", retry_after=RETRY_SECONDS, reason="no_process"
            ) from error
        self._all.add(process)
        return process

    def _give_back(self, process: TextProcess, is_large: bool) -> None:
        """Keep a process for the next body, if it is fit for one; synchronous, so that no cancellation can stop it."""
        loop = asyncio.get_running_loop()
        if is_large or self._closed or not process.is_ready:
            self._end_soon(process)
            return
        self._idle.append(process)
        self._timers[process] = loop.call_later(self.policy.idle_seconds, self._end_idle, process)

    def _end_idle(self, process: TextProcess) -> None:
        self._idle.remove(process)
        del self._timers[process]
        self._end_soon(process)

    def _end_soon(self, process: TextProcess) -> None:
        task = asyncio.get_running_loop().create_task(self._end(process), name=f"end text process {process.pid}")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end(self, process: TextProcess) -> None:
        try:
            await process.end()
        finally:
            self._all.discard(process)
