"""The asyncio end of the pipe to one engine process: submit requests, read their outputs, abort them.

The API process binds a ZeroMQ PAIR socket in a private directory, spawns the engine with that address, and reads what
it says. `fleet` in the server owns the process; this module owns the conversation.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable

import msgspec
import zmq
import zmq.asyncio

from engine.errors import EngineDeadError, ModelLoadError
from engine.messages import (
    MAX_FRAME_BYTES,
    AbortRequest,
    AddRequest,
    EngineInfo,
    EngineStats,
    Inbound,
    LoadFailed,
    Loading,
    Ready,
    SequenceOutput,
    Shutdown,
    StepOutputs,
    decode_outbound,
    encode,
)
from engine.sampling_params import SamplingParams

logger = logging.getLogger(__name__)


class RequestStream:
    """The outputs of one request, as an async iterator over lists: all that came since the last look.

    Ends after every one of the `n` sequences has finished. Raises `EngineDeadError` if the engine dies first.
    `abort` may be called at any moment, any number of times; the iterator then ends.
    """

    def __init__(self, client: "EngineClient", request_id: int, n: int) -> None:
        self.request_id = request_id
        self._client = client
        self._unfinished = n
        self._pending: list[SequenceOutput] = []
        self._wake = asyncio.Event()
        self._error: EngineDeadError | None = None

    def abort(self) -> None:
        """Tell the engine to forget this request, unless it has ended."""
        self._client._abort(self)
        self._unfinished = 0
        self._wake.set()

    async def __aiter__(self) -> AsyncIterator[list[SequenceOutput]]:
        while True:
            if self._pending:
                outputs, self._pending = self._pending, []
                yield outputs
            elif self._unfinished <= 0:
                return
            elif self._error is not None:
                raise self._error
            else:
                self._wake.clear()
                await self._wake.wait()

    def _deliver(self, output: SequenceOutput) -> bool:
        """Take one output; True when the request has ended."""
        self._pending.append(output)
        if output.finish_reason is not None:
            self._unfinished -= 1
        self._wake.set()
        return self._unfinished <= 0

    def _fail(self, error: EngineDeadError) -> None:
        self._error = error
        self._wake.set()


class EngineClient:
    """One engine process, as the API process sees it."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint` is a ZeroMQ address, `ipc://` in a directory only this user can enter; it is bound here."""
        self.endpoint = endpoint
        self.info: EngineInfo | None = None
        self.stats = EngineStats()
        self.last_heard = time.monotonic()
        self.on_loading: Callable[[Loading], None] = lambda progress: None
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.bind(endpoint)
        self._streams: dict[int, RequestStream] = {}
        self._ids = itertools.count(1)
        self._ready: asyncio.Future[EngineInfo] = asyncio.get_running_loop().create_future()
        self._dead: EngineDeadError | None = None
        self._reader = asyncio.create_task(self._read(), name=f"engine-reader {endpoint}")

    @property
    def num_requests(self) -> int:
        """Requests submitted and not yet ended."""
        return len(self._streams)

    async def wait_ready(self) -> EngineInfo:
        """Wait for the model to be loaded. Raises `ModelLoadError` or `EngineDeadError`."""
        return await asyncio.shield(self._ready)

    def submit(
        self, prompt_token_ids: list[int], params: SamplingParams, *, n: int = 1, salt: bytes = b""
    ) -> RequestStream:
        """Send a request; its outputs arrive on the returned stream. Raises `EngineDeadError`."""
        if self._dead is not None:
            raise self._dead
        request_id = next(self._ids)
        stream = RequestStream(self, request_id, n)
        self._streams[request_id] = stream
        self._send(AddRequest(request_id=request_id, prompt_token_ids=prompt_token_ids, params=params, n=n, salt=salt))
        return stream

    def mark_dead(self, reason: str) -> None:
        """The process has gone: fail everybody who waits for it. Idempotent."""
        if self._dead is not None:
            return
        self._dead = EngineDeadError(reason)
        if not self._ready.done():
            self._ready.set_exception(self._dead)
            self._ready.exception()  # a load nobody awaits must not warn about it
        streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            stream._fail(self._dead)

    def shutdown(self) -> None:
        """Ask the engine process to end."""
        self._send(Shutdown())

    async def close(self) -> None:
        """Stop reading and release the socket."""
        self.mark_dead("the engine was shut down")
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self._socket.close()
        self._context.term()

    def _abort(self, stream: RequestStream) -> None:
        if self._streams.pop(stream.request_id, None) is not None:
            self._send(AbortRequest(request_ids=[stream.request_id]))

    def _send(self, message: Inbound) -> None:
        if self._dead is None and not self._socket.closed:
            # With no high-water mark a send never waits, so the future it returns is already done.
            self._socket.send(encode(message), flags=zmq.NOBLOCK)

    async def _read(self) -> None:
        while True:
            frame = await self._socket.recv()
            self.last_heard = time.monotonic()
            try:
                message = decode_outbound(frame)
            except msgspec.DecodeError as error:
                logger.error("dropped a frame from the engine that is not a message: %s", error)
                continue
            self._receive(message)

    def _receive(self, message: StepOutputs | Loading | LoadFailed | Ready) -> None:
        match message:
            case StepOutputs(outputs=outputs, stats=stats):
                self.stats = stats
                for output in outputs:
                    stream = self._streams.get(output.request_id)
                    if stream is not None and stream._deliver(output):
                        del self._streams[output.request_id]
            case Loading():
                self.on_loading(message)
            case Ready(info=info):
                self.info = info
                if not self._ready.done():
                    self._ready.set_result(info)
            case LoadFailed(message=text, hint=hint):
                if not self._ready.done():
                    self._ready.set_exception(ModelLoadError(text, hint=hint))
                    self._ready.exception()
