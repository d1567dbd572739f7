"""The answer to a request that generates text, from admission to its last byte, whichever route asked for it.

Whatever can fail does so before the headers are sent: they wait for the engine's first output, or, once the engine has
queued the request, for the first pause that is long enough to need a keep-alive comment. The exception are streams of a
model that is not loaded yet: their headers go out at once, and whatever fails later is told in the stream.
"""

from contextlib import aclosing

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from engine.errors import EngineDeadError, RequestError
from engine.messages import AddImage, ImageSpan
from server.answer.generation import Delta, Generation
from server.answer.streams import PromptStreams
from server.context import ServerContext, not_ready
from server.edge.auth import Caller
from server.edge.limits import ClientGone, Ticket
from server.edge.queues import Place
from server.edge.quotas import Hold, Reservation
from server.edge.sse import KEEP_ALIVE_SECONDS, DisconnectWatcher, EventWriter, Ticker
from server.fleet.handle import EngineHandle
from server.fleet.lease import Lease
from server.images.messages import PreparedImage
from server.prompt.allowance import expected_tokens, least_tokens, within
from server.prompt.plan import PromptPlan
from server.protocol.errors import ApiError
from server.protocol.hints import cache_salt
from server.protocol.parts import ImageRef
from server.protocol.response import encode_json
from server.routes.deadlines import Deadline
from server.routes.failures import as_api_error
from server.routes.forms import AnswerForm, Kind
from server.routes.generated import Generated
from server.routes.loading import tell_until_loaded, wait_until_loaded
from server.routes.text_work import Asked, do_text_work
from server.telemetry.record import RequestRecord

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
                told = as_api_error(error)
                self._record.fail(told)
                await writer.end(_frame(encode_json(told.body())))
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
            with self._deadline.loading(lease.handle):
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
        # What the key never allows loads no model. The rest of its tokens is counted once there are prompts.
        self._caller.account.check_tokens(asked.answer_tokens)
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
        self._images = await self._context.images.prepare(refs, handle.info, handle.terms.images, self._caller.salt)
        return [image.token_ids for image in self._images]

    async def _generate(
        self, plans: list[PromptPlan], watcher: DisconnectWatcher, send: Send, writer: EventWriter
    ) -> None:
        """Submit the prompts and send what comes of them."""
        self._check_priority(plans[0].priority)
        account = self._caller.account
        self._reserved = account.reserve(least_tokens(plans), expected_tokens(plans))
        plans = within(plans, account.token_limit)
        generated: Generated | None = None
        try:
            self._place.bring(sum(len(plan.prompt_token_ids) for plan in plans))
            self._deadline.wait()
            form, generated = self._submit(plans)
            watcher.on_gone = generated.streams.abort
            try:
                if watcher.gone:
                    generated.streams.abort()
                if plans[0].stream:
                    await self._stream(writer, generated, form, watcher)
                else:
                    await self._whole(send, generated, form, watcher)
            finally:
                generated.end(gone=watcher.gone)
        finally:
            # Nothing is due for what was not computed.
            is_due = self._record.first_token is not None or watcher.gone
            self._settle(generated if is_due else None)

    def _settle(self, generated: Generated | None) -> None:
        """Count what the answer has taken among its key's tokens."""
        self._reserved.settle(0 if generated is None else generated.usage()["total_tokens"])

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

    def _submit(self, plans: list[PromptPlan]) -> tuple[AnswerForm, Generated]:
        """Give the prompts to the engine."""
        client, tokenizer = self._handle.client, self._handle.tokenizer
        if client is None:
            raise not_ready(self._handle)
        assert tokenizer is not None, "a model that was ready has it"
        form = self._kind.form(self._handle.name, plans, tokenizer)
        generations = [Generation(plan, tokenizer) for plan in plans]
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
        generated = Generated(
            self._handle.name, generations, streams,
            counters=self._context.counters, record=self._record, on_begin=self._begin,
        )  # fmt: skip
        return form, generated

    def _begin(self) -> None:
        """The first token has come."""
        self._place.release()
        self._deadline.begin()

    async def _whole(self, send: Send, generated: Generated, form: AnswerForm, watcher: DisconnectWatcher) -> None:
        """Collect all choices and send them in one piece."""
        async with aclosing(generated.streams.batches()) as batches:
            async for batch in batches:
                for delta in generated.take(batch):
                    form.add(delta)
        if watcher.gone:
            return
        self._deadline.end()
        content = form.whole(generated.usage())
        self._settle(generated)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            *generated.notes(),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _stream(
        self, writer: EventWriter, generated: Generated, form: AnswerForm, watcher: DisconnectWatcher
    ) -> None:
        """Send deltas as they come; all that came since the last write goes into one."""
        has_begun = False
        try:
            with Ticker(KEEP_ALIVE_SECONDS, generated.streams.poke):
                async with aclosing(generated.streams.batches()) as batches:
                    async for batch in batches:
                        events = _events(form, generated, generated.take(batch))
                        if not has_begun and (events or generated.streams.accepted):
                            has_begun = True
                            await _send_headers(writer, generated.notes())
                        if events:
                            await writer.write(events)
                        elif writer.started and not batch:
                            await writer.keep_alive()
            if not watcher.gone:
                self._deadline.end()
                includes_usage = generated.plan.include_usage
                await writer.end(_frame(form.usage_chunk(generated.usage())) if includes_usage else b"")
        except Exception as error:
            raise as_api_error(error) from error


def _placed(plan: PromptPlan, images: list[PreparedImage]) -> list[tuple[ImageSpan, AddImage]]:
    """The images of a prompt, each with its place."""
    return [
        (ImageSpan(start, count, image.digest), AddImage(image.digest, image.grid, image.arrays))
        for (start, count), image in zip(plan.images, images, strict=True)
    ]


async def _send_headers(writer: EventWriter, notes: list[tuple[bytes, bytes]]) -> None:
    """Begin a stream; if its headers have gone out already, say in comments what would be among them."""
    if not writer.started:
        await writer.start(notes)
        return
    for name, value in notes:
        await writer.comment(f"{name.decode()}: {value.decode()}")


def _events(form: AnswerForm, generated: Generated, deltas: list[Delta]) -> bytes:
    counts = generated.usage() if generated.plan.continuous_usage else None
    return b"".join(_frame(chunk) for delta in deltas for chunk in form.chunks(delta, counts))


def _frame(chunk: bytes) -> bytes:
    return b"data: %b\n\n" % chunk
