"""The asyncio end of the pipe to one engine process: submit requests, read their outputs, abort them.

The API process binds a ZeroMQ PAIR socket in a private directory, spawns the engine with that address, and reads what
it says. `fleet` in the server owns the process; this module owns the conversation. Everything here runs in one event
loop and nothing waits while it sends.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence

import msgspec
import zmq

from engine.errors import EngineDeadError, EngineStoppedError, ModelLoadError
from engine.messages import (
    MAX_FRAME_BYTES,
    AbortRequest,
    AddImage,
    AddRequest,
    AskCached,
    Asleep,
    Cached,
    EngineInfo,
    EngineStats,
    ImageSpan,
    Inbound,
    LoadFailed,
    Loading,
    Outbound,
    Ready,
    SequenceOutput,
    Shutdown,
    Sleep,
    StepOutputs,
    Wake,
    decode_outbound,
    encode,
)
from engine.request_stream import RequestStream
from engine.sampling_params import SamplingParams

logger = logging.getLogger(__name__)

FRAMES_AT_A_TIME = 64
"""Frames read before other work of the event loop gets its turn."""


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
        self._questions: dict[int, asyncio.Future[int]] = {}
        self._ids = itertools.count(1)
        self._ready: asyncio.Future[EngineInfo] = self._loop.create_future()
        self._falling: asyncio.Future[Asleep] | None = None
        self._dead: EngineDeadError | None = None
        self._loop.add_reader(self._socket.fileno(), self._read)
        # The descriptor signals edges only; one that came before the reader was there would be lost.
        self._loop.call_soon(self._read)

    @property
    def num_requests(self) -> int:
        """Requests submitted and not yet ended."""
        return len(self._streams)

    @property
    def is_dead(self) -> bool:
        """Whether the process has gone, and everybody has been told."""
        return self._dead is not None

    async def wait_ready(self) -> EngineInfo:
        """Wait for the model to be loaded. Raises `ModelLoadError` or `EngineDeadError`."""
        return await asyncio.shield(self._ready)

    def submit(
        self,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        n: int = 1,
        salt: bytes = b"",
        tenant: bytes = b"",
        weight: float = 1.0,
        priority: int = 0,
        images: Sequence[tuple[ImageSpan, AddImage]] = (),
    ) -> RequestStream:
        """Send a prompt to be continued `n` times; the outputs arrive on the returned stream.

        Of those that wait in the engine, lower `priority` is served first. `tenant` is who asks; where several wait,
        each has tokens by its `weight`. `images` stand in the prompt, in order. Raises `EngineDeadError`.
        """
        if self._dead is not None:
            raise self._dead
        request_id = next(self._ids)
        stream = RequestStream(request_id, n, self._abort)
        for image in {image.digest: image for _, image in images}.values():
            self._send(image)
        spans = [span for span, _ in images]
        self._send(
            AddRequest(
                request_id,
                prompt_token_ids,
                params,
                n=n,
                salt=salt,
                tenant=tenant,
                weight=weight,
                priority=priority,
                images=spans,
            )
        )
        self._streams[request_id] = stream
        return stream

    async def count_cached(
        self, prompt_token_ids: list[int], *, salt: bytes = b"", images: Sequence[ImageSpan] = ()
    ) -> int:
        """The leading tokens of a prompt that the prefix cache would spare a request that came now.

        Answered between steps. Raises `EngineDeadError`.
        """
        if self._dead is not None:
            raise self._dead
        question_id = next(self._ids)
        answer: asyncio.Future[int] = self._loop.create_future()
        self._questions[question_id] = answer
        self._send(AskCached(question_id, prompt_token_ids, salt, list(images)))
        try:
            return await answer
        finally:
            self._questions.pop(question_id, None)

    async def sleep(self) -> Asleep:
        """Have the model put away, which no request may have; what that frees and takes. Raises `EngineDeadError`."""
        if self._dead is not None:
            raise self._dead
        self._falling = self._loop.create_future()
        self._ready = self._loop.create_future()
        self._send(Sleep())
        return await self._falling

    def wake(self) -> None:
        """Have the model brought back; `wait_ready` waits for it."""
        self._send(Wake())

    def mark_dead(self, error: EngineDeadError) -> None:
        """The process has gone: fail everybody who waits for it with `error`. Idempotent."""
        if self._dead is not None:
            return
        self._dead = error
        if not self._ready.done():
            self._ready.set_exception(self._dead)
            self._ready.exception()  # a load nobody awaits must not warn about it
        if self._falling is not None and not self._falling.done():
            self._falling.set_exception(self._dead)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(self._dead)
        for question in self._questions.values():
            if not question.done():
                question.set_exception(self._dead)

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

    def _abort(self, stream: RequestStream, index: int | None) -> None:
        if index is None:
            self._streams.pop(stream.request_id, None)
        self._send(AbortRequest(request_ids=[stream.request_id], index=index))

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
            case Cached(question_id=question_id, num_tokens=num_tokens):
                question = self._questions.get(question_id)
                if question is not None and not question.done():
                    question.set_result(num_tokens)
            case Asleep():
                if self._falling is not None and not self._falling.done():
                    self._falling.set_result(message)
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
        if stream is not None and stream.deliver(output):
            del self._streams[output.request_id]
