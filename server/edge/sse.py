"""Server-sent events over ASGI, and the watch for clients that leave.

Starlette's streaming response learns of a disconnect only at its next send, which in a long prompt may be late; here a
task listens all the time, for streaming and plain answers alike.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, TypeVar

from starlette.types import Receive, Send

from server.edge.limits import ClientGone

T = TypeVar("T")

KEEP_ALIVE_SECONDS = 10.0
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class DisconnectWatcher:
    """Calls `on_gone` once, in the event loop, if the client leaves while the `with` block runs.

    Enter it only after the request body has been read whole: it takes every message from `receive`.
    """

    def __init__(self, receive: Receive) -> None:
        self.gone = False
        self.on_gone: Callable[[], object] = lambda: None
        self._receive = receive
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> "DisconnectWatcher":
        self._task = asyncio.create_task(self._watch())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled if the client leaves. Raises `ClientGone` then."""
        task = asyncio.ensure_future(work)
        self.on_gone = task.cancel
        try:
            return await task
        except asyncio.CancelledError:
            if not self.gone:
                task.cancel()  # it was us who were cancelled
                raise
            raise ClientGone from None
        finally:
            self.on_gone = lambda: None

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self.on_gone()


class Ticker:
    """Calls `on_tick` every `seconds` while the `with` block runs: one timer, whatever passes through a stream."""

    def __init__(self, seconds: float, on_tick: Callable[[], None]) -> None:
        self._seconds = seconds
        self._on_tick = on_tick
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> "Ticker":
        self._arm()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._fire)

    def _fire(self) -> None:
        self._arm()
        self._on_tick()


class EventWriter:
    """Writes one event stream: headers at `start`, then events, each call one write to the socket.

    A write waits while the client reads too slowly, so that nothing piles up here.
    """

    def __init__(self, send: Send, *, says_done: bool = True) -> None:
        self.started = False
        self._send = send
        self._says_done = says_done
        self._wrote = False

    async def start(self, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Send status 200 and the headers, these and those of every stream."""
        self.started = True
        await self._send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, *headers]})

    async def write(self, events: bytes) -> None:
        """Send whole events."""
        self._wrote = True
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def comment(self, text: str) -> None:
        """Send a line that readers of events skip; `text` has no line breaks."""
        await self.write(f": {text}\n\n".encode())

    async def keep_alive(self) -> None:
        """Send a comment if nothing was written since the last call."""
        if not self._wrote:
            await self.write(KEEP_ALIVE)
        self._wrote = False

    async def end(self, events: bytes = b"") -> None:
        """Send the last events, `[DONE]` where that is said, and end the response."""
        body = events + DONE if self._says_done else events
        message: dict[str, Any] = {"type": "http.response.body", "body": body, "more_body": False}
        await self._send(message)
