"""POST /tokenize and /detokenize: what a prompt costs, and what tokens say, without computing anything."""

import json

from fastapi import APIRouter, Request
from fastapi.responses import Response

from engine.errors import EngineDeadError
from engine.messages import ImageSpan
from server.answer.relaxed import UNUSED_HEADER, pointers_header
from server.context import ServerContext, not_ready
from server.edge.auth import Caller
from server.edge.limits import ClientGone, Ticket
from server.edge.quotas import Hold
from server.edge.sse import DisconnectWatcher
from server.fleet.handle import EngineHandle
from server.fleet.lease import Lease
from server.images.messages import PreparedImage
from server.prompt.text_messages import AskedPrompt, TextRoute
from server.protocol.hints import cache_salt
from server.protocol.parts import ImageRef
from server.protocol.response import encode_json
from server.routes.answering import CLIENT_CLOSED_REQUEST
from server.routes.failures import as_api_error
from server.routes.loading import wait_until_loaded
from server.routes.text_work import Asked, do_text_work

router = APIRouter()


@router.post("/tokenize", summary="The tokens of a prompt or a conversation")
async def tokenize(request: Request) -> Response:
    """The ids that a request with this prompt, or these messages, would be computed from."""
    return await _answer(request, "tokenize")


@router.post("/detokenize", summary="The text of tokens")
async def detokenize(request: Request) -> Response:
    """Control tokens are written out."""
    return await _answer(request, "detokenize")


async def _answer(request: Request, route: TextRoute) -> Response:
    """Answer a request. Raises `ApiError`."""
    context: ServerContext = request.app.state.context
    caller: Caller = request.state.caller
    held: list[Hold | Ticket | Lease] = []
    try:
        held.append(caller.account.hold(1))
        held.append(context.admission.admit(1, caller.salt))
        content, unused = await _do_work(request, route, held)
    except ClientGone:
        context.counters.disconnected += 1
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        for taken in reversed(held):
            taken.release()
    headers = {UNUSED_HEADER.decode(): pointers_header(unused, len(unused)).decode()} if unused else {}
    return Response(content, media_type="application/json", headers=headers)


async def _do_work(request: Request, route: TextRoute, held: list[Hold | Ticket | Lease]) -> tuple[bytes, list[str]]:
    """Read a request and do its work: the answer, and what of the request was not used.

    What is taken for it is added to `held`. Raises `ApiError`, and `ClientGone` where nobody waits any more.
    """
    context: ServerContext = request.app.state.context
    caller: Caller = request.state.caller
    handles: list[EngineHandle] = []
    images: list[PreparedImage] = []

    def choose(asked: Asked) -> Lease:
        handles.append(context.model(asked.model, caller))
        request.state.record.model = handles[-1].name
        lease = context.lease(handles[-1])
        held.append(lease)
        return lease

    async def wait(lease: Lease, is_stream: bool) -> None:
        await wait_until_loaded(lease, context.load_wait)

    async def look(handle: EngineHandle, refs: list[ImageRef]) -> list[list[int]]:
        assert handle.info is not None, "a loaded model has it"
        images[:] = await context.images.prepare(refs, handle.info, handle.terms.images, caller.salt)
        return [image.token_ids for image in images]

    body = await context.admission.read_json_body(request.headers, request.receive)
    try:
        with DisconnectWatcher(request.receive) as watcher:
            ignore = context.ignore_unknown_fields
            work = do_text_work(context.texts, route, body.raw, choose, wait, ignore_unknown=ignore, look=look)
            _, answer = await watcher.unless_gone(work)
            content = answer.content
            if answer.prompt is not None:
                cached = _cached_tokens(handles[-1], answer.prompt, images, caller.salt)
                content = encode_json(json.loads(content) | {"cached_tokens": await watcher.unless_gone(cached)})
    finally:
        body.release()
    return content, answer.unused


async def _cached_tokens(handle: EngineHandle, prompt: AskedPrompt, images: list[PreparedImage], tenant: bytes) -> int:
    """What the prefix cache would spare a request with this prompt now. Raises `ApiError`."""
    spans = [ImageSpan(at, count, image.digest) for (at, count), image in zip(prompt.images, images, strict=True)]
    if handle.client is None:
        raise not_ready(handle)
    try:
        return await handle.client.count_cached(
            prompt.token_ids, salt=cache_salt(tenant, prompt.cache_key), images=spans
        )
    except EngineDeadError as error:
        raise as_api_error(error) from error
