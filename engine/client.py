"""The asyncio end of the pipe to one engine process: submit requests, read their outputs, abort them.

The API process binds a ZeroMQ PAIR socket in a private directory, spawns the engine with that address, and reads what
it says. `fleet` in the server owns the process; this module owns the conversation. Everything here runs in one event
loop and nothing waits while it sends.
"""

import asyncio
import hashlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import msgspec
import zmq

from engine.errors import EngineDeadError, EngineStoppedError, ModelLoadError
from engine.messages import (
    MAX_FRAME_BYTES,
    AbortRequest,
    AddRequest,
    EngineInfo,
    EngineStats,
    Inbound,
    LoadFailed,
    Loading,
    Outbound,
    Ready,
    SequenceOutput,
    Shutdown,
    StepOutputs,
    decode_outbound,
    encode,
)
from engine.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

FRAMES_AT_A_TIME = 64
"""Frames read before other work of the event loop gets its turn."""
SHARED_PROMPT_TOKENS = 64
"""From this prompt length on, further choices wait until the first has left the prompt in the prefix cache."""


class RequestStream:
    """The outputs of one prompt's `n` choices, as an async iterator over lists: all that came since the last look.

    A list is empty only after `poke`. The iterator ends when every choice has finished or was aborted, and raises
    `EngineDeadError` if the engine dies first. `SequenceOutput.index` is the choice. One reader at a time.
    """

    def __init__(self, client: "EngineClient", request_ids: list[int]) -> None:
        self._client = client
        self._running = {request_id: index for index, request_id in enumerate(request_ids)}
        self._later: list[AddRequest] = []
        self._pending: list[SequenceOutput] = []
        self._poked = False
        self._waiter: asyncio.Future[None] | None = None
        self._error: EngineDeadError | None = None

    def abort(self, index: int | None = None) -> None:
        """Forget one choice, or all of them. Synchronous; may be called at any moment, any number of times."""
        doomed = [request_id for request_id, choice in self._running.items() if index in (None, choice)]
        self._pending = [] if index is None else [output for output in self._pending if output.index != index]
        self._later = [add for add in self._later if add.request_id not in doomed]
        for request_id in doomed:
            del self._running[request_id]
        self._client._abort(doomed)
        self._send_later()
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
            elif not self._running:
                return
            elif self._error is not None:
                raise self._error
            else:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter

    def _deliver(self, output: SequenceOutput) -> None:
        """Take one output of the engine, which numbers no choices: each was submitted as a request of its own."""
        index = self._running[output.request_id]
        self._pending.append(output if index == output.index else msgspec.structs.replace(output, index=index))
        if output.finish_reason is not None:
            del self._running[output.request_id]
        self._send_later()
        self._wake()

    def _send_later(self) -> None:
        adds, self._later = self._later, []
        for add in adds:
            self._client._send(add)

    def _fail(self, error: EngineDeadError) -> None:
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class EngineClient:
    """One engine process, as the API process sees it. Must be made, used and closed in one running event loop."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint` is a ZeroMQ address, `ipc://` in a directory only this user can enter; it is bound here."""
        self.endpoint = endpoint
        self.info: EngineInfo | None = None
        self.stats = EngineStats()
        self.last_heard = time.monotonic()
        """When the engine last said anything, by the monotonic clock."""
        self.on_loading: Callable[[Loading], None] = lambda progress: None
        self._loop = asyncio.get_running_loop()
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.bind(endpoint)
        self._streams: dict[int, RequestStream] = {}
        self._ids = itertools.count(1)
        self._ready: asyncio.Future[EngineInfo] = self._loop.create_future()
        self._dead: EngineDeadError | None = None
        self._loop.add_reader(self._socket.fileno(), self._read)
        # The descriptor signals edges only; one that came before the reader was there would be lost.
        self._loop.call_soon(self._read)

    @property
    def num_requests(self) -> int:
        """Choices submitted and not yet ended."""
        return len(self._streams)

    async def wait_ready(self) -> EngineInfo:
        """Wait for the model to be loaded. Raises `ModelLoadError` or `EngineDeadError`."""
        return await asyncio.shield(self._ready)

    def submit(
        self, prompt_token_ids: list[int], params: SamplingParams, *, n: int = 1, salt: bytes = b""
    ) -> RequestStream:
        """Send a prompt to be continued `n` times; the outputs arrive on the returned stream.

        Each choice is a request of its own to the engine, so that one can end alone; the first keeps the seed given,
        the others' seeds are derived from it. Raises `EngineDeadError`.
        """
        if self._dead is not None:
            raise self._dead
        adds = [
            AddRequest(next(self._ids), prompt_token_ids, _params_of_choice(params, index), salt=salt)
            for index in range(n)
        ]
        stream = RequestStream(self, [add.request_id for add in adds])
        for add in adds:
            self._streams[add.request_id] = stream
        if len(prompt_token_ids) >= SHARED_PROMPT_TOKENS:
            stream._later = adds[1:]
            del adds[1:]
        for add in adds:
            self._send(add)
        return stream

    def mark_dead(self, error: EngineDeadError) -> None:
        """The process has gone: fail everybody who waits for it with `error`. Idempotent."""
        if self._dead is not None:
            return
        self._dead = error
        if not self._ready.done():
            self._ready.set_exception(self._dead)
            self._ready.exception()  # a load nobody awaits must not warn about it
        streams = set(self._streams.values())
        self._streams.clear()
        for stream in streams:
            stream._fail(self._dead)

    def shutdown(self) -> None:
        """Ask the engine process to end."""
        self._send(Shutdown())

    async def close(self) -> None:
        """Fail what still waits and release the socket. Idempotent."""
        self.mark_dead(EngineStoppedError("the engine was shut down"))
        if not self._socket.closed:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._context.term()

    def _abort(self, request_ids: list[int]) -> None:
        known = [request_id for request_id in request_ids if self._streams.pop(request_id, None) is not None]
        if known:
            self._send(AbortRequest(request_ids=known))

    def _send(self, message: Inbound) -> None:
        if self._dead is not None or self._socket.closed:
            return
        try:
            self._socket.send(encode(message), flags=zmq.NOBLOCK)
        except zmq.Again:
            # With no high-water mark this means: nobody is connected. Before the engine has connected there is only
            # a Shutdown to lose, and afterwards the supervisor sees the process end.
            logger.debug("the engine is not connected, %s was not sent", type(message).__name__)
        # Sending may swallow the edge that announces a frame to read.
        self._loop.call_soon(self._read)

    def _read(self) -> None:
        for _ in range(FRAMES_AT_A_TIME):
            if self._socket.closed:
                return
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self.last_heard = time.monotonic()
            try:
                self._receive(decode_outbound(frame))
            except msgspec.DecodeError as error:
                logger.error("dropped a frame from the engine that is not a message: %s", error)
            except Exception:
                # One message that cannot be handled must not stop the reading of all others.
                logger.exception("failed to handle a message of the engine")
        self._loop.call_soon(self._read)

    def _receive(self, message: Outbound) -> None:
        match message:
            case StepOutputs(outputs=outputs, stats=stats):
                self.stats = stats
                for output in outputs:
                    self._deliver(output)
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

    def _deliver(self, output: SequenceOutput) -> None:
        """Hand one output to its stream; outputs of aborted and unknown requests fall on the floor."""
        stream = self._streams.get(output.request_id)
        if stream is None:
            return
        if output.finish_reason is not None:
            del self._streams[output.request_id]
        stream._deliver(output)


def _params_of_choice(params: SamplingParams, index: int) -> SamplingParams:
    if index == 0 or params.seed is None:
        return params
    # Mixed, not counted up: choice 1 of seed 7 must have nothing to do with choice 0 of seed 8.
    digest = hashlib.sha256(f"{params.seed} {index}".encode()).digest()
    return replace(params, seed=int.from_bytes(digest[:8], "little", signed=True))
