"""The answer to a request that generates text, from admission to its last byte, whichever route asked for it.

Whatever can fail does so before the headers are sent: they wait for the engine's first output, or, once the engine has
queued the request, for the first pause that is long enough to need a keep-alive comment. The exception are streams of a
model that is not loaded yet: their headers go out at once, and whatever fails later is told in the stream.
"""

import logging
import time
from contextlib import aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from engine.errors import EngineDeadError, RequestError
from engine.messages import AddImage, ImageSpan
from server.answer.generation import Delta, Generation
from server.answer.relaxed import RELAXED_HEADER, UNUSED_HEADER, pointers_header, relaxed_header
from server.answer.streams import Batch, PromptStreams
from server.context import ServerContext, not_ready
from server.edge.auth import Caller
from server.edge.limits import ClientGone, Ticket
from server.edge.queues import Place
from server.edge.quotas import Hold, Reservation
from server.edge.sse import KEEP_ALIVE_SECONDS, DisconnectWatcher, EventWriter, Ticker
from server.fleet.handle import EngineHandle
from server.fleet.lease import Lease
from server.images.messages import PreparedImage
from server.prompt.plan import PromptPlan
from server.protocol.errors import ApiError
from server.protocol.hints import cache_salt
from server.protocol.parts import ImageRef
from server.protocol.response import encode_json, usage
from server.routes.deadlines import Deadline
from server.routes.failures import as_api_error
from server.routes.forms import AnswerForm, Kind
from server.routes.loading import tell_until_loaded, wait_until_loaded
from server.routes.text_work import Asked, do_text_work
from server.telemetry.meter import AnswerMeter
from server.telemetry.record import RequestRecord

logger = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""What the log says of a client that left; it is never sent."""


class Answer(Response):
    """The answer to one request. However it ends, the engine is told, so that nothing is computed for nobody."""

    def __init__(self, request: Request, kind: Kind) -> None:
        self.background = None
        self._context: ServerContext = request.app.state.context
        self._request = request
        self._caller: Caller = request.state.caller
        self._kind = kind
        self._handle: EngineHandle
        self._record: RequestRecord = request.state.record
        self._deadline: Deadline
        self._place: Place
        self._held: list[Ticket | Hold | Lease | Place] = []
        """What is to be given back in the end."""
        self._has_begun = False
        """Whether a token has come."""
        self._generations: list[Generation] = []
        self._meter: AnswerMeter
        self._images: list[PreparedImage] = []
        self._reserved = Reservation(None, 0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. Raises `ApiError` for what fails before the headers."""
        writer = EventWriter(send, says_done=self._kind.says_done)
        try:
            async with Deadline() as self._deadline:
                await self._answer(receive, send, writer)
        except ClientGone:
            self._context.counters.disconnected += 1
            if not writer.started:
                await Response(status_code=CLIENT_CLOSED_REQUEST)(scope, receive, send)
        except Exception as error:
            if writer.started:
                await writer.end(_frame(encode_json(as_api_error(error).body())))
            elif isinstance(error, EngineDeadError | RequestError):
                raise as_api_error(error) from error
            else:
                raise
        finally:
            for hold in self._held:
                hold.release()

    async def _answer(self, receive: Receive, send: Send, writer: EventWriter) -> None:
        """Read the request, wait for its model, and generate."""
        context = self._context

        async def wait(lease: Lease, is_stream: bool) -> None:
            await (tell_until_loaded(lease, writer) if is_stream else wait_until_loaded(lease, context.load_wait))

        context.admission.check(owner=self._caller.salt)
        context.check_queues(self._caller)
        body = await context.admission.read_json_body(self._request.headers, receive)
        with DisconnectWatcher(receive) as watcher:
            try:
                work = do_text_work(
                    context.texts,
                    self._kind.route,
                    body.raw,
                    self._choose,
                    wait,
                    ignore_unknown=context.ignore_unknown_fields,
                    look=self._look,
                )
                plans, _ = await watcher.unless_gone(work)
            finally:
                body.release()
            await self._generate(plans, watcher, send, writer)

    def _choose(self, asked: Asked) -> Lease:
        """Take what the request needs before its text is read: places, and hold of its model. Raises `ApiError`."""
        context, owner = self._context, self._caller.salt
        self._handle = context.model(asked.model, self._caller)
        self._record.model = self._handle.name
        queue = context.queue(self._handle)
        self._deadline.limit(queue, asked.timeout)
        self._held.append(self._caller.account.hold(asked.num_choices))
        self._held.append(context.admission.admit(asked.num_choices, owner))
        self._place = queue.enter(owner, asked.num_choices)
        self._held.append(self._place)
        lease = context.lease(self._handle)
        self._held.append(lease)
        return lease

    async def _look(self, handle: EngineHandle, refs: list[ImageRef]) -> list[list[int]]:
        """Fetch and prepare the images of the request; which tokens stand for each."""
        assert handle.info is not None, "a loaded model has it"
        # Without the request's cache key: an image is the same whatever is asked about it.
        self._images = await self._context.images.prepare(refs, handle.info, handle.images, self._caller.salt)
        return [image.token_ids for image in self._images]

    async def _generate(
        self, plans: list[PromptPlan], watcher: DisconnectWatcher, send: Send, writer: EventWriter
    ) -> None:
        """Submit the prompts and send what comes of them."""
        self._check_priority(plans[0].priority)
        self._reserved = self._caller.account.reserve(
            sum(plan.least_tokens for plan in plans), sum(plan.expected_tokens for plan in plans)
        )
        try:
            self._place.bring(sum(len(plan.prompt_token_ids) for plan in plans))
            self._deadline.wait()
            form, streams = self._submit(plans)
            watcher.on_gone = streams.abort
            try:
                if watcher.gone:
                    streams.abort()
                if plans[0].stream:
                    await self._stream(writer, streams, form, watcher)
                else:
                    await self._whole(send, streams, form, watcher)
            finally:
                streams.abort()
                self._count(streams, gone=watcher.gone)
        finally:
            self._settle(is_due=self._record.first_token is not None or watcher.gone)

    def _check_priority(self, priority: int) -> None:
        """Raise `ApiError` 403 if the request would go before others further than its key may."""
        lowest = self._caller.lowest_priority
        if lowest is not None and priority < lowest:
            raise ApiError(
                403,
                f"priority must be at least {lowest} for this key, got {priority}",
                type="permission_error",
                param="priority",
                code="not_permitted",
            )

    def _submit(self, plans: list[PromptPlan]) -> tuple[AnswerForm, PromptStreams]:
        """Give the prompts to the engine."""
        client, tokenizer = self._handle.client, self._handle.tokenizer
        if client is None:
            raise not_ready(self._handle)
        assert tokenizer is not None, "a model that was ready has it"
        form = self._kind.form(self._handle.name, plans, tokenizer)
        self._generations = [Generation(plan, tokenizer) for plan in plans]
        tenant = self._caller.salt
        salt = cache_salt(tenant, plans[0].cache_key)
        streams = PromptStreams(
            [
                client.submit(
                    plan.prompt_token_ids, plan.params, n=plan.n, salt=salt, tenant=tenant,
                    weight=self._caller.weight, priority=plan.priority, images=_placed(plan, self._images),
                )
                for plan in plans
            ]
        )  # fmt: skip
        self._images = []
        self._record.stream = plans[0].stream
        self._meter = AnswerMeter(
            self._context.counters.of(self._handle.name),
            self._record,
            [len(plan.prompt_token_ids) for plan in plans],
            plans[0].n,
        )
        return form, streams

    def _settle(self, *, is_due: bool) -> None:
        """Count what the answer has taken among its key's tokens; nothing is due for what was not computed."""
        self._reserved.settle(self._usage()["total_tokens"] if is_due else 0)

    def _count(self, streams: PromptStreams, *, gone: bool) -> None:
        """The answer has ended, one way or the other."""
        counters, generations = self._context.counters, self._generations
        counters.disconnected += gone
        counters.prompt_tokens += sum(len(generation.plan.prompt_token_ids) for generation in generations)
        counters.completion_tokens += sum(generation.completion_tokens for generation in generations)
        self._meter.end(
            gone=gone,
            queue=next((found for generation in generations if (found := generation.queue_seconds) is not None), None),
            compiled=streams.compile_seconds,
            cached_tokens=sum(generation.cached_tokens for generation in generations),
        )

    async def _whole(self, send: Send, streams: PromptStreams, form: AnswerForm, watcher: DisconnectWatcher) -> None:
        """Collect all choices and send them in one piece."""
        async with aclosing(streams.batches()) as batches:
            async for batch in batches:
                for delta in self._take(streams, batch):
                    form.add(delta)
        if watcher.gone:
            return
        self._deadline.end()
        content = form.whole(self._usage())
        self._settle(is_due=True)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            *self._notes(streams),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _stream(
        self, writer: EventWriter, streams: PromptStreams, form: AnswerForm, watcher: DisconnectWatcher
    ) -> None:
        """Send deltas as they come; all that came since the last write goes into one."""
        plan = self._generations[0].plan
        has_begun = False
        try:
            with Ticker(KEEP_ALIVE_SECONDS, streams.poke):
                async with aclosing(streams.batches()) as batches:
                    async for batch in batches:
                        events = self._events(form, self._take(streams, batch))
                        if not has_begun and (events or streams.accepted):
                            has_begun = True
                            await self._begin(writer, self._notes(streams))
                        if events:
                            await writer.write(events)
                        elif writer.started and not batch:
                            await writer.keep_alive()
            if not watcher.gone:
                self._deadline.end()
                await writer.end(_frame(form.usage_chunk(self._usage())) if plan.include_usage else b"")
        except Exception as error:
            raise as_api_error(error) from error

    async def _begin(self, writer: EventWriter, notes: list[tuple[bytes, bytes]]) -> None:
        """Send the headers; if they have gone out already, what would be among them in comments."""
        if not writer.started:
            await writer.start(notes)
            return
        for name, value in notes:
            await writer.comment(f"{name.decode()}: {value.decode()}")

    def _events(self, form: AnswerForm, deltas: list[Delta]) -> bytes:
        counts = self._usage() if self._generations[0].plan.continuous_usage else None
        return b"".join(_frame(chunk) for delta in deltas for chunk in form.chunks(delta, counts))

    def _take(self, streams: PromptStreams, batch: Batch) -> list[Delta]:
        """Turn outputs into text, and end the choices on the engine's side that a stop string has ended here."""
        taken: list[Delta] = []
        now = time.monotonic()
        for position, outputs in batch:
            generation = self._generations[position]
            for delta in generation.take(outputs):
                if delta.finish_reason is not None:
                    streams.abort_choice(position, delta.index)
                delta.index += position * generation.plan.n
                self._meter.take(delta.index, len(delta.token_ids), delta.finish_reason, now)
                taken.append(delta)
        if not self._has_begun and self._record.first_token is not None:
            self._has_begun = True
            self._place.release()
            self._deadline.begin()
        return taken

    def _notes(self, streams: PromptStreams) -> list[tuple[bytes, bytes]]:
        """What was not used, and what was left out of schemas; asked for once in an answer, since that is counted."""
        unused = self._generations[0].plan.unused
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
            sum(generation.plan.num_image_tokens for generation in self._generations),
        )


def _placed(plan: PromptPlan, images: list[PreparedImage]) -> list[tuple[ImageSpan, AddImage]]:
    """The images of a prompt, each with its place."""
    return [
        (ImageSpan(start, count, image.digest), AddImage(image.digest, image.grid, image.arrays))
        for (start, count), image in zip(plan.images, images, strict=True)
    ]


def _frame(chunk: bytes) -> bytes:
    return b"data: %b\n\n" % chunk
