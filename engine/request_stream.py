"""What one request has said so far, for one who reads it now and then: the reader's end of the pipe to an engine."""

import asyncio
from collections.abc import AsyncIterator, Callable

from engine.constraint import Relaxed
from engine.errors import EngineDeadError, RequestError
from engine.messages import SequenceOutput

MAX_UNREAD_OUTPUTS = 16_384
"""Outputs of one request that wait here to be read; with twenty log-probabilities each they are some 30 MB."""


class RequestStream:
    """The outputs of one prompt's `n` choices, as an async iterator over lists: all that came since the last look.

    A list is empty only after `poke`. The iterator ends when every choice has finished or was aborted, and raises
    `EngineDeadError` if the engine dies first, `RequestError` if more than `MAX_UNREAD_OUTPUTS` were not read in time.
    `SequenceOutput.index` is the choice. One reader at a time.
    """

    def __init__(self, request_id: int, n: int, on_abort: Callable[["RequestStream", int | None], None]) -> None:
        """`on_abort` is told when a choice is forgotten, or with None when the whole request is."""
        self.request_id = request_id
        self.accepted = False
        """Whether the engine has queued the request; what it refuses, it refuses before."""
        self.relaxed: Relaxed | None = None
        """What the request's constraint does not hold its answers to; known once it is accepted."""
        self.compile_seconds: float | None = None
        """What it waited for its constraint, if it has one; known once it is accepted or refused."""
        self._on_abort = on_abort
        self._running = set(range(n))
        self._pending: list[SequenceOutput] = []
        self._poked = False
        self._waiter: asyncio.Future[None] | None = None
        self._error: EngineDeadError | RequestError | None = None

    def abort(self, index: int | None = None) -> None:
        """Forget one choice, or all of them. Synchronous; may be called at any moment, any number of times."""
        doomed = self._running if index is None else self._running & {index}
        self._pending = [output for output in self._pending if index not in (None, output.index)]
        if doomed:
            self._running = self._running - doomed
            self._on_abort(self, index if self._running else None)
        self._wake()

    def poke(self) -> None:
        """Make the iterator yield now, an empty list if nothing has come."""
        self._poked = True
        self._wake()

    async def __aiter__(self) -> AsyncIterator[list[SequenceOutput]]:
        while True:
            if self._pending or self._poked:
                self._poked = False
                outputs, self._pending = self._pending, []
                yield outputs
            elif self._error is not None and (self._running or isinstance(self._error, RequestError)):
                raise self._error
            elif not self._running:
                return
            else:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter

    def deliver(self, output: SequenceOutput) -> bool:
        """Take one output; whether it was the last of the request. What comes for an aborted choice is dropped."""
        self.accepted |= output.finish_reason != "error"
        self.relaxed = self.relaxed or output.relaxed
        if output.compile_seconds is not None:
            self.compile_seconds = output.compile_seconds
        if output.index in self._running and not output.is_empty:
            if len(self._pending) >= MAX_UNREAD_OUTPUTS:
                self._error = RequestError(
                    f"The client reads too slowly: it is {MAX_UNREAD_OUTPUTS} tokens behind", code="slow_reader"
                )
                self.abort()
                return False  # the abort has taken the stream out of the client's books
            self._pending.append(output)
            if output.finish_reason is not None:
                self._running.remove(output.index)
            self._wake()
        return not self._running

    def fail(self, error: EngineDeadError) -> None:
        """The engine has died: raise this to whoever reads, if something is left to come."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
