"""The server's application in this process: the same routes, without a socket before them."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message

from engine.config import EngineConfig
from engine.errors import ConfigError, HeadraceError
from server.app import build_app
from server.config.settings import ModelSpec, find_models_file, load_models_file
from server.config.unlisted import choose
from server.context import ServerContext
from server.edge.auth import Keys
from server.edge.limits import Admission, Limits
from server.edge.queues import ModelQueue, QueueLimits
from server.fleet.fleet import Fleet
from server.fleet.handle import EngineHandle
from server.fleet.policy import FleetPolicy, Terms

HOST = "headrace.local"
NO_LIMIT = 1 << 30
"""Of what is admitted: who asks in this process waits for places instead of being refused."""


class RefusedError(HeadraceError):
    """A request was answered with an error: in the words of the answer, with its status and OpenAI's fields."""

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        super().__init__(str(error.get("message", "")))
        self.status = status
        self.error = dict(error)
        """OpenAI's `message`, `type`, `param` and `code`."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer in one piece."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The answer. Raises `RefusedError` if it is an error."""
        found: dict[str, Any] = json.loads(self.body)
        if self.status != 200:
            raise RefusedError(self.status, found["error"])
        return found


def find_spec(model: str | None, models: Path | None) -> ModelSpec:
    """The model of that name or source; the default of models.yaml, or of the file `models`, if it is None.

    Raises `ConfigError`.
    """
    path = models or find_models_file()
    file = None if path is None else load_models_file(path)
    name = model or (None if file is None else file.default)
    if name is None:
        raise ConfigError("there is no models.yaml here", hint="name a model, or the file that names them")
    (spec,) = choose([name], file).specs
    return spec


class LocalServer:
    """One model, and the application before it. All methods belong to one event loop."""

    def __init__(
        self, spec: ModelSpec, config: EngineConfig, on_progress: Callable[[EngineHandle], None] = lambda handle: None
    ) -> None:
        """`config` is what is loaded, `spec` says the rest of it: names, defaults, tools, images."""
        self.name = spec.name
        self._fleet = Fleet(
            (config,),
            FleetPolicy(),
            aliases=dict.fromkeys(spec.aliases, spec.name),
            terms={spec.name: Terms(defaults=spec.sampling, tools=spec.tools, images=spec.images)},
            on_change=on_progress,
        )
        queue = ModelQueue(spec.name, QueueLimits(max_queue=NO_LIMIT, max_queue_tokens=NO_LIMIT))
        admission = Admission(Limits(max_requests=NO_LIMIT))
        self._context = ServerContext(self._fleet, admission, queues={spec.name: queue})
        self._app: ASGIApp = build_app(self._context, keys=Keys(), playground=False)

    @property
    def handle(self) -> EngineHandle:
        """The model."""
        return self._fleet.handles[self.name]

    async def start(self) -> None:
        """Load the model. Raises the `HeadraceError` that it fails with."""
        await self._fleet.start()
        await self._fleet.wait_settled()
        if self.handle.error is not None:
            raise self.handle.error

    async def stop(self) -> None:
        """End all processes. Idempotent."""
        await asyncio.gather(self._fleet.stop(), self._context.texts.close(), self._context.images.close())

    async def ask(self, path: str, body: bytes, method: str = "POST") -> Reply:
        """The whole answer to a request, however it ends."""
        exchange = _Exchange(body)
        await self._app(_scope(path, body, method), exchange.receive, exchange.send)
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # which the application takes for its own end, and answers
            raise asyncio.CancelledError
        return Reply(exchange.status, exchange.headers, b"".join(exchange.taken()))

    async def events(self, path: str, body: bytes) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a streamed answer as they come. Raises `RefusedError`, be it before or after the first."""
        exchange = _Exchange(body)
        running = asyncio.create_task(
            _until_end(self._app(_scope(path, body), exchange.receive, exchange.send), exchange)
        )
        unread = b""
        try:
            async for piece in exchange.pieces():
                *frames, unread = (unread + piece).split(b"\n\n")
                for event in filter(None, map(_event, frames)):
                    if "error" in event:
                        raise RefusedError(exchange.status, event["error"])
                    yield event
            if exchange.status != 200:
                Reply(exchange.status, exchange.headers, unread).json()
        finally:
            exchange.leave()
            with contextlib.suppress(asyncio.CancelledError):
                await running


async def _until_end(call: Any, exchange: "_Exchange") -> None:
    try:
        await call
    finally:
        exchange.end()


def _event(frame: bytes) -> dict[str, Any] | None:
    """What a frame of the stream says; None of comments and of the last."""
    if not frame.startswith(b"data: ") or frame == b"data: [DONE]":
        return None
    found: dict[str, Any] = json.loads(frame.removeprefix(b"data: "))
    return found


def _scope(path: str, body: bytes, method: str = "POST") -> dict[str, Any]:
    headers = {"host": HOST, "content-type": "application/json", "content-length": str(len(body))}
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "scheme": "http",
        "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": None, "server": (HOST, 80),
    }  # fmt: skip


@dataclass(slots=True)
class _Exchange:
    """What the application is given to receive and to send by."""

    body: bytes
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    _sent: "asyncio.Queue[bytes | None]" = field(default_factory=asyncio.Queue)
    _gone: asyncio.Event = field(default_factory=asyncio.Event)
    _is_read: bool = False

    async def receive(self) -> Message:
        """The body; then nothing until whoever asked has left."""
        if not self._is_read:
            self._is_read = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """A piece of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
        elif body := message.get("body"):
            self._sent.put_nowait(body)

    def leave(self) -> None:
        """Nobody waits for the answer any more."""
        self._gone.set()

    def end(self) -> None:
        """Nothing more will be sent."""
        self._sent.put_nowait(None)

    def taken(self) -> list[bytes]:
        """What has been sent so far."""
        return [piece for _ in range(self._sent.qsize()) if (piece := self._sent.get_nowait()) is not None]

    async def pieces(self) -> AsyncIterator[bytes]:
        """What is sent, as it comes."""
        while (piece := await self._sent.get()) is not None:
            yield piece
