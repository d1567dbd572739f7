"""The answer to a request that generates text, from admission to its last byte, whichever route asked for it.

Whatever can fail does so before the headers are sent: they wait for the engine's first output, or, once the engine has
queued the request, for the first pause that is long enough to need a keep-alive comment.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from engine.errors import EngineDeadError, EngineStoppedError, RequestError
from engine.messages import EngineInfo
from server.answer.generation import Delta, Generation
from server.answer.relaxed import RELAXED_HEADER, UNUSED_HEADER, pointers_header, relaxed_header
from server.answer.streams import Batch, PromptStreams
from server.config.settings import SamplingDefaults
from server.context import ServerContext, not_ready
from server.edge.guard import internal_error
from server.edge.limits import ClientGone
from server.edge.sse import KEEP_ALIVE_SECONDS, DisconnectWatcher, EventWriter, Ticker
from server.fleet.fleet import EngineHandle
from server.prompt.plan import PromptPlan
from server.prompt.tokenizer import ChatTokenizer
from server.protocol.errors import ApiError, from_request_error, overloaded
from server.protocol.hints import cache_salt
from server.protocol.response import encode_json, usage

logger = logging.getLogger(__name__)

INLINE_BYTES = 2048
"""Bodies up to this size are parsed, rendered and tokenised on the event loop: a hop to a thread would cost more."""
CLIENT_CLOSED_REQUEST = 499
"""What the log says of a client that left; it is never sent."""
STOPPED_RETRY_SECONDS = 5

T = TypeVar("T")


class AnswerForm(Protocol):
    """What one kind of answer looks like. Fed with every delta of a request, either by `add` or by `chunks`."""

    def add(self, delta: Delta) -> None:
        """Take a delta into an answer that is sent whole."""

    def whole(self, usage: dict[str, Any]) -> bytes:
        """The answer in one piece, as JSON, once all deltas are in."""

    def chunks(self, delta: Delta, usage: dict[str, Any] | None) -> list[bytes]:
        """The chunks of a stream that a delta makes, as JSON; `usage` is the counts so far, if they are asked for."""

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        """The last chunk of a stream that ends with its usage."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a route makes of one request: the model it names, its cost, and how it becomes plans and an answer."""

    model: str | None
    num_choices: int
    plan: Callable[[ChatTokenizer, EngineInfo, SamplingDefaults], list[PromptPlan]]
    form: Callable[[str, list[PromptPlan], ChatTokenizer], AnswerForm]
    """From the model's full name, the plans and the tokenizer."""
    cache_key: str | None = None
    """Prompts are cached for requests of the same key alone."""
    unused: tuple[str, ...] = ()
    """JSON pointers of what was ignored of the request."""


async def run_text_work(num_bytes: int, function: Callable[[], T]) -> T:
    """Run work on the text of a request: in a thread if there is much of it."""
    return function() if num_bytes <= INLINE_BYTES else await asyncio.to_thread(function)


async def answer_request(request: Request, job_of: Callable[[bytes, bool], Job]) -> Response:
    """Read and check a request; the response object does the rest. Raises `ApiError`.

    `job_of` parses the body, and is told whether to ignore fields that do not exist.
    """
    context: ServerContext = request.app.state.context
    began = time.monotonic()
    context.admission.check()
    try:
        raw = await context.admission.read_json_body(request.headers, request.receive)
    except ClientGone:
        context.counters.disconnected += 1
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    job = await run_text_work(len(raw), lambda: job_of(raw, context.ignore_unknown_fields))
    return Answer(context, context.model(job.model), job, len(raw), salt=request.state.salt, began=began)


class Answer(Response):
    """The answer to one request. However it ends, the engine is told, so that nothing is computed for nobody."""

    def __init__(
        self, context: ServerContext, handle: EngineHandle, job: Job, num_bytes: int, *, salt: bytes, began: float
    ) -> None:
        self.background = None
        self._context = context
        self._handle = handle
        self._job = job
        self._num_bytes = num_bytes
        self._salt = salt
        self._began = began
        self._generations: list[Generation] = []
        self._has_tokens = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. Raises `ApiError` for what fails before the headers."""
        counters = self._context.counters
        client = self._handle.client
        if client is None:
            raise not_ready(self._handle)
        ticket = self._context.admission.admit(self._job.num_choices)
        try:
            tokenizer, info, defaults = self._handle.tokenizer, self._handle.info, self._handle.defaults
            assert tokenizer is not None and info is not None, "a ready model has both"
            plans, form = await run_text_work(self._num_bytes, lambda: self._prepare(tokenizer, info, defaults))
            self._generations = [Generation(plan, tokenizer) for plan in plans]
            salt = cache_salt(self._salt, self._job.cache_key)
            streams = PromptStreams(
                [
                    client.submit(plan.prompt_token_ids, plan.params, n=plan.n, salt=salt, priority=plan.priority)
                    for plan in plans
                ]
            )
            try:
                with DisconnectWatcher(receive, streams.abort) as watcher:
                    answer = self._stream if plans[0].stream else self._whole
                    await answer(send, streams, form, watcher)
            finally:
                streams.abort()
                counters.disconnected += watcher.gone
                counters.prompt_tokens += sum(len(plan.prompt_token_ids) for plan in plans)
                counters.completion_tokens += sum(generation.completion_tokens for generation in self._generations)
        except (EngineDeadError, RequestError) as error:
            raise as_api_error(error) from error
        finally:
            ticket.release()
            counters.duration.observe(time.monotonic() - self._began)

    def _prepare(
        self, tokenizer: ChatTokenizer, info: EngineInfo, defaults: SamplingDefaults
    ) -> tuple[list[PromptPlan], AnswerForm]:
        """The work on the prompts' text, which grows with their length."""
        plans = self._job.plan(tokenizer, info, defaults)
        return plans, self._job.form(self._handle.name, plans, tokenizer)

    async def _whole(self, send: Send, streams: PromptStreams, form: AnswerForm, watcher: DisconnectWatcher) -> None:
        """Collect all choices and send them in one piece."""
        async with aclosing(streams.batches()) as batches:
            async for batch in batches:
                for delta in self._take(streams, batch):
                    form.add(delta)
        if watcher.gone:
            return
        content = form.whole(self._usage())
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            *self._notes(streams),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _stream(self, send: Send, streams: PromptStreams, form: AnswerForm, watcher: DisconnectWatcher) -> None:
        """Send deltas as they come; all that came since the last write goes into one."""
        writer = EventWriter(send)
        plan = self._generations[0].plan
        try:
            with Ticker(KEEP_ALIVE_SECONDS, streams.poke):
                async with aclosing(streams.batches()) as batches:
                    async for batch in batches:
                        events = self._events(form, self._take(streams, batch))
                        if not writer.started and (events or streams.accepted):
                            await writer.start(self._notes(streams))
                        if events:
                            await writer.write(events)
                        elif writer.started and not batch:
                            await writer.keep_alive()
            if not watcher.gone:
                await writer.end(_frame(form.usage_chunk(self._usage())) if plan.include_usage else b"")
        except Exception as error:
            answer = as_api_error(error)
            if not writer.started:
                raise answer from error
            await writer.end(_frame(encode_json(answer.body())))

    def _events(self, form: AnswerForm, deltas: list[Delta]) -> bytes:
        counts = self._usage() if self._generations[0].plan.continuous_usage else None
        return b"".join(_frame(chunk) for delta in deltas for chunk in form.chunks(delta, counts))

    def _take(self, streams: PromptStreams, batch: Batch) -> list[Delta]:
        """Turn outputs into text, and end the choices on the engine's side that a stop string has ended here."""
        taken: list[Delta] = []
        for position, outputs in batch:
            generation = self._generations[position]
            for delta in generation.take(outputs):
                if delta.finish_reason is not None:
                    streams.abort_choice(position, delta.index)
                delta.index += position * generation.plan.n
                taken.append(delta)
        if not self._has_tokens and any(delta.token_ids for delta in taken):
            self._has_tokens = True
            self._context.counters.first_token.observe(time.monotonic() - self._began)
        return taken

    def _notes(self, streams: PromptStreams) -> list[tuple[bytes, bytes]]:
        """What was not used, and what was left out of schemas; asked for once in an answer, since that is counted."""
        unused = (*self._job.unused, *self._generations[0].plan.unused)
        headers = [(UNUSED_HEADER, pointers_header(unused, len(unused)))] if unused else []
        relaxed = streams.relaxed
        if relaxed is not None:
            self._context.counters.relaxed_requests += 1
            self._context.counters.relaxed_keywords += relaxed.count
            headers.append((RELAXED_HEADER, relaxed_header(relaxed)))
        return headers

    def _usage(self) -> dict[str, Any]:
        """Counts so far: every prompt once, all answers together."""
        return usage(
            sum(len(generation.plan.prompt_token_ids) for generation in self._generations),
            sum(generation.completion_tokens for generation in self._generations),
            sum(generation.cached_tokens for generation in self._generations),
            sum(generation.reasoning_tokens for generation in self._generations),
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
    logger.error("a request failed unexpectedly", exc_info=error)
    return internal_error()


def _frame(chunk: bytes) -> bytes:
    return b"data: %b\n\n" % chunk
