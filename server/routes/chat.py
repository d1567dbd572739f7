"""POST /v1/chat/completions: from raw bytes to an answer, whole or streamed."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from engine.client import RequestStream
from engine.errors import EngineDeadError, EngineStoppedError, RequestError
from engine.messages import SequenceOutput
from server.context import ServerContext, not_ready
from server.convert import convert
from server.edge import internal_error
from server.errors import ApiError, from_request_error, overloaded
from server.fleet import EngineHandle
from server.generation import Delta, Generation
from server.limits import ClientGone
from server.protocol import (
    ChatCompletionRequest,
    Choice,
    ChunkEncoder,
    FinishReason,
    chat_completion,
    new_completion_id,
    parse_chat_request,
)
from server.protocol.response import encode_json
from server.sse import KEEP_ALIVE_SECONDS, DisconnectWatcher, EventWriter, Ticker

logger = logging.getLogger(__name__)
router = APIRouter()

INLINE_BYTES = 2048
"""Bodies up to this size are parsed, rendered and tokenised on the event loop: a hop to a thread would cost more."""
CLIENT_CLOSED_REQUEST = 499
"""What the log says of a client that left; it is never sent."""

STOPPED_RETRY_SECONDS = 5

T = TypeVar("T")


@router.post("/v1/chat/completions", summary="Continue a conversation")
async def create_chat_completion(request: Request) -> Response:
    """Read and check the request; the response object does the rest."""
    context: ServerContext = request.app.state.context
    began = time.monotonic()
    context.admission.check()
    try:
        raw = await context.admission.read_json_body(request.headers, request.receive)
    except ClientGone:
        context.counters.disconnected += 1
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    chat = await _run(len(raw), lambda: parse_chat_request(raw))
    handle = context.model(chat.model)
    return ChatAnswer(context, handle, chat, len(raw), salt=request.state.salt, began=began)


class ChatAnswer(Response):
    """The answer to one chat request, from admission to its last byte.

    Whatever can fail does so before the headers are sent: they wait for the engine's first output. However this ends,
    `RequestStream.abort` is called, so that nothing is computed for nobody.
    """

    def __init__(
        self,
        context: ServerContext,
        handle: EngineHandle,
        chat: ChatCompletionRequest,
        num_bytes: int,
        *,
        salt: bytes,
        began: float,
    ) -> None:
        self.background = None
        self._context = context
        self._handle = handle
        self._chat = chat
        self._num_bytes = num_bytes
        self._salt = salt
        self._began = began
        self._id = new_completion_id()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. Raises `ApiError` for what fails before the headers."""
        counters = self._context.counters
        client = self._handle.client
        if client is None:
            raise not_ready(self._handle)
        ticket = self._context.admission.admit(self._chat.n or 1)
        try:
            tokenizer, info, defaults = self._handle.tokenizer, self._handle.info, self._handle.defaults
            assert tokenizer is not None and info is not None, "a ready model has both"
            plan = await _run(self._num_bytes, lambda: convert(self._chat, tokenizer, info, defaults))
            generation = Generation(plan, tokenizer)
            stream = client.submit(plan.prompt_token_ids, plan.params, n=plan.n, salt=self._salt)
            try:
                with DisconnectWatcher(receive, stream.abort) as watcher:
                    answer = self._stream if plan.stream else self._whole
                    await answer(send, stream, generation, watcher)
            finally:
                stream.abort()
                counters.disconnected += watcher.gone
                counters.prompt_tokens += len(plan.prompt_token_ids)
                counters.completion_tokens += generation.completion_tokens
        except (EngineDeadError, RequestError) as error:
            raise as_api_error(error) from error
        finally:
            ticket.release()
            counters.duration.observe(time.monotonic() - self._began)

    async def _whole(
        self, send: Send, stream: RequestStream, generation: Generation, watcher: DisconnectWatcher
    ) -> None:
        """Collect all choices and send them in one piece."""
        collected = [_Collected() for _ in range(generation.plan.n)]
        async for outputs in stream:
            for delta in self._take(stream, generation, outputs):
                collected[delta.index].add(delta)
        if watcher.gone:
            return
        body = chat_completion(
            completion_id=self._id,
            created=int(time.time()),
            model=self._handle.name,
            system_fingerprint=generation.plan.system_fingerprint,
            choices=[choice.finished(index) for index, choice in enumerate(collected)],
            usage=generation.usage(),
        )
        content = encode_json(body)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _stream(
        self, send: Send, stream: RequestStream, generation: Generation, watcher: DisconnectWatcher
    ) -> None:
        """Send deltas as they come; all that came since the last write goes into one."""
        writer = EventWriter(send)
        plan = generation.plan
        encoder = ChunkEncoder(
            completion_id=self._id,
            model=self._handle.name,
            system_fingerprint=plan.system_fingerprint,
            include_usage=plan.include_usage,
            continuous_usage=plan.continuous_usage,
        )
        try:
            with Ticker(KEEP_ALIVE_SECONDS, stream.poke):
                async for outputs in stream:
                    if outputs:
                        deltas = self._take(stream, generation, outputs)
                        events = _events(encoder, deltas, generation)
                        if not writer.started:
                            await writer.start()
                        if events:
                            await writer.write(events)
                    elif writer.started:
                        await writer.keep_alive()
            if not watcher.gone:
                await writer.end(_frame(encoder.usage(generation.usage())) if plan.include_usage else b"")
        except Exception as error:
            answer = as_api_error(error)
            if not writer.started:
                raise answer from error
            await writer.end(_frame(encode_json(answer.body())))

    def _take(self, stream: RequestStream, generation: Generation, outputs: list[SequenceOutput]) -> list[Delta]:
        """Turn outputs into text, and end the choices on the engine's side that a stop string has ended here."""
        if outputs and not generation.completion_tokens:
            self._context.counters.first_token.observe(time.monotonic() - self._began)
        deltas = generation.take(outputs)
        for delta in deltas:
            if delta.finish_reason is not None:
                stream.abort(delta.index)
        return deltas


class _Collected:
    """A choice in the making."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] | None = None
        self._finish_reason: FinishReason = "stop"

    def add(self, delta: Delta) -> None:
        self._texts.append(delta.text)
        if delta.logprobs is not None:
            self._logprobs = (self._logprobs or []) + delta.logprobs
        if delta.finish_reason is not None:
            self._finish_reason = delta.finish_reason

    def finished(self, index: int) -> Choice:
        return Choice(
            index=index, content="".join(self._texts), finish_reason=self._finish_reason, logprobs=self._logprobs
        )


def as_api_error(error: Exception) -> ApiError:
    """What an API client is told of an error."""
    match error:
        case ApiError():
            return error
        case RequestError():
            return from_request_error(error)
        case EngineStoppedError():
            return overloaded("The server is shutting down", retry_after=STOPPED_RETRY_SECONDS)
        case EngineDeadError():
            return ApiError(
                503,
                "The engine of this model has ended unexpectedly; the request can be sent again",
                type="server_error",
                code="engine_died",
                headers={"Retry-After": "2"},
            )
    logger.error("a chat request failed unexpectedly", exc_info=error)
    return internal_error()


def _events(encoder: ChunkEncoder, deltas: list[Delta], generation: Generation) -> bytes:
    usage = generation.usage() if generation.plan.continuous_usage else None
    chunks: list[bytes] = []
    for delta in deltas:
        if delta.is_first:
            chunks.append(encoder.role(delta.index, usage))
        if delta.text or delta.logprobs:
            chunks.append(encoder.text(delta.index, delta.text, delta.logprobs, usage))
        if delta.finish_reason is not None:
            chunks.append(encoder.finish(delta.index, delta.finish_reason, usage))
    return b"".join(map(_frame, chunks))


def _frame(chunk: bytes) -> bytes:
    return b"data: %b\n\n" % chunk


async def _run(num_bytes: int, function: Callable[[], T]) -> T:
    """Run work on the text of a request: in a thread if there is much of it."""
    return function() if num_bytes <= INLINE_BYTES else await asyncio.to_thread(function)
