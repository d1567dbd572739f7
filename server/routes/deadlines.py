"""The time that a request has: to wait for its first token, and in all.

    async with Deadline() as deadline:
        deadline.limit(queue_limits, asked)
        ...
        deadline.wait()     # from here on it waits for its turn
        deadline.begin()    # its turn has come
        deadline.end()      # only the sending is left

What runs within is cancelled when the time is up, and the block raises the `ApiError` that says which limit it was.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from server.context import not_ready
from server.edge.queues import ModelQueue
from server.edge.quotas import NO_RETRY
from server.fleet.handle import EngineHandle
from server.protocol.errors import ApiError


class Deadline:
    """One request's time, by the clock of the event loop."""

    def __init__(self) -> None:
        """It begins now."""
        self._began = asyncio.get_running_loop().time()
        self._timeout = asyncio.timeout(None)
        self._queue: ModelQueue | None = None
        self._total: float | None = None
        self._is_asked = False
        self._waits_until: float | None = None
        self._loading: EngineHandle | None = None

    async def __aenter__(self) -> "Deadline":
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            if not self._timeout.expired():
                raise
            raise self._reason() from None

    def limit(self, queue: ModelQueue, asked: float | None) -> None:
        """The limits of its model hold, and the seconds that the request itself asks for, if these are fewer."""
        self._queue = queue
        limits = [seconds for seconds in (queue.limits.request_timeout, asked) if seconds is not None]
        self._total = min(limits, default=None)
        self._is_asked = asked is not None and asked == self._total
        self._arm()

    @contextmanager
    def loading(self, handle: EngineHandle) -> Iterator[None]:
        """Inside it waits for its model, which goes on loading when the time is up: who comes again may be answered."""
        self._loading = handle
        yield
        self._loading = None  # not where it was cancelled, for then this is the reason

    def wait(self) -> None:
        """From now on it waits for its turn."""
        if self._queue is not None and (seconds := self._queue.limits.queue_timeout) is not None:
            self._waits_until = asyncio.get_running_loop().time() + seconds
            self._arm()

    def begin(self) -> None:
        """Its turn has come."""
        if self._waits_until is not None:
            self._waits_until = None
            self._arm()

    def end(self) -> None:
        """There is nothing left that may be cut short."""
        self._total = self._waits_until = None
        self._arm()

    def _arm(self) -> None:
        ends = [at for at in (self._ends_at, self._waits_until) if at is not None]
        if not self._timeout.expired():
            self._timeout.reschedule(min(ends, default=None))

    @property
    def _ends_at(self) -> float | None:
        return None if self._total is None else self._began + self._total

    def _reason(self) -> ApiError:
        assert self._queue is not None, "without limits no time is ever up"
        ends_at, waits_until = self._ends_at, self._waits_until
        if waits_until is not None and (ends_at is None or waits_until < ends_at):
            return waited_too_long(self._queue)
        if self._loading is not None and not self._is_asked:
            return not_ready(self._loading)
        limit = "the request's timeout" if self._is_asked else "the limit of this server"
        return ApiError(
            408 if self._is_asked else 504,
            f"The answer was not complete after {self._total:g} s, which is {limit}",
            type="invalid_request_error" if self._is_asked else "server_error",
            param="timeout" if self._is_asked else None,
            code="deadline_exceeded",
            headers=dict(NO_RETRY),
        )


def waited_too_long(queue: ModelQueue) -> ApiError:
    """503: the engine had no place for a request in time."""
    seconds = queue.answers.retry_after(1)
    return ApiError(
        503,
        f"The request waited for its turn for {queue.limits.queue_timeout:g} s, which is the limit of this server;"
        f" come again in {seconds} s",
        type="server_error",
        code="queue_timeout",
        headers={"Retry-After": str(seconds)},
    )
