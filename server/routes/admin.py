"""POST /admin/models/{id}/load, /unload, /sleep: what an operator does with models. `Edge` has seen that it is one."""

from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from engine.errors import ConfigError, HeadraceError
from server.context import LOADING_RETRY_SECONDS, ServerContext, not_ready
from server.edge.limits import ClientGone
from server.edge.sse import KEEP_ALIVE_SECONDS, DisconnectWatcher, EventWriter
from server.fleet.handle import EngineHandle
from server.fleet.policy import ModelState
from server.protocol.admin_request import AdminRequest, read_admin_request
from server.protocol.errors import DRAINING, ApiError, overloaded
from server.protocol.response import encode_json
from server.routes.failures import as_api_error
from server.routes.loading import wait_until_loaded
from server.routes.models import describe
from server.telemetry.record import RequestRecord

router = APIRouter()


@router.post("/admin/models/{name:path}/load", summary="Load a model")
async def load_model(request: Request, name: str) -> Response:
    """Load it now, also one whose load has failed; the model once it is there, or an event at each stage."""
    context: ServerContext = request.app.state.context
    if context.admission.draining:
        raise overloaded("The server is shutting down", retry_after=LOADING_RETRY_SECONDS, reason=DRAINING)
    handle = _named(request, name)
    if (await _body(request)).stream:
        return _Told(request, handle)
    lease = context.fleet.lease(handle)
    try:
        with DisconnectWatcher(request.receive) as watcher:
            await watcher.unless_gone(wait_until_loaded(lease, context.load_wait))
    finally:
        lease.release()
    return JSONResponse(describe(context.fleet, handle))


@router.post("/admin/models/{name:path}/unload", summary="Put a model away")
async def unload_model(request: Request, name: str) -> Response:
    """End its process and wait until that has gone. A model that answers or is waited for is not ended: 409."""
    context: ServerContext = request.app.state.context
    handle = _named(request, name)
    is_stream = bool((await _body(request)).stream)
    _refuse_if_busy(handle, "unload it")
    context.fleet.residency.end(handle)
    return await _once_put_away(request, handle, is_stream=is_stream)


@router.post("/admin/models/{name:path}/sleep", summary="Let a model sleep")
async def let_sleep(request: Request, name: str) -> Response:
    """Free a GPU of it, but keep its process, and its weights in the host's memory, so that waking is quick.

    On a CPU, where that would free nothing, it is unloaded. A model that answers or is waited for is left alone: 409.
    """
    context: ServerContext = request.app.state.context
    handle = _named(request, name)
    is_stream = bool((await _body(request)).stream)
    _refuse_if_busy(handle, "let it sleep")
    if handle.state not in (ModelState.READY, ModelState.ASLEEP):
        raise ApiError(
            409,
            f"The model {handle.name} is {handle.state}; only one that is ready can fall asleep",
            code="model_not_ready",
        )
    if handle.state is ModelState.READY:
        try:
            context.fleet.residency.sleep(handle)
        except ConfigError as error:
            raise ApiError(409, f"{error.message}; {error.hint}", code="no_room_to_sleep") from error
    return await _once_put_away(request, handle, is_stream=is_stream)


def _named(request: Request, name: str) -> EngineHandle:
    """The model of that name, which the line of the log has too. Raises `ApiError` 404."""
    context: ServerContext = request.app.state.context
    handle = context.model(name, request.state.caller)
    request.state.record.model = handle.name
    return handle


def _refuse_if_busy(handle: EngineHandle, what: str) -> None:
    count = len(handle.holders)
    if count:
        requests = f"{count} request{'s' if count > 1 else ''}"
        raise ApiError(409, f"The model {handle.name} has {requests}; {what} when they have ended", code="model_busy")


async def _once_put_away(request: Request, handle: EngineHandle, *, is_stream: bool) -> Response:
    context: ServerContext = request.app.state.context
    if is_stream:
        return _Told(request, handle, loads=False)
    await context.fleet.wait_unloaded(handle)
    return JSONResponse(describe(context.fleet, handle))


async def _body(request: Request) -> AdminRequest:
    """The body, if there is one. Raises `ApiError`."""
    context: ServerContext = request.app.state.context
    headers = request.headers
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return AdminRequest()
    body = await context.admission.read_json_body(headers, request.receive)
    try:
        return read_admin_request(body.raw, ignore_unknown=context.ignore_unknown_fields)
    finally:
        body.release()


class _Told(Response):
    """A stream of the model at each stage, until it is loaded or, with `loads` false, unloaded."""

    def __init__(self, request: Request, handle: EngineHandle, *, loads: bool = True) -> None:
        self.background = None
        self._context: ServerContext = request.app.state.context
        self._record: RequestRecord = request.state.record
        self._handle = handle
        self._loads = loads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        writer = EventWriter(send)
        await writer.start()
        with DisconnectWatcher(receive) as watcher:
            try:
                await watcher.unless_gone(self._tell(writer))
            except ClientGone:
                return

    async def _tell(self, writer: EventWriter) -> None:
        last = b""
        stages = self._while_loading() if self._loads else self._while_unloading()
        try:
            async for _ in stages:
                event = b"data: %b\n\n" % encode_json(describe(self._context.fleet, self._handle))
                await writer.write(event if event != last else b": keep-alive\n\n")
                last = event
        except (HeadraceError, ApiError) as error:
            told = as_api_error(error)
            self._record.fail(told)
            await writer.end(b"data: %b\n\n" % encode_json(told.body()))
            return
        await writer.end()

    async def _while_loading(self) -> AsyncIterator[None]:
        """Yields at each change, the last time when the model is ready. Raises `ApiError`."""
        lease = self._context.fleet.lease(self._handle)
        try:
            while not lease.is_active:
                yield
                try:
                    await lease.change(KEEP_ALIVE_SECONDS)
                except HeadraceError as error:
                    raise not_ready(self._handle) from error
            yield
        finally:
            lease.release()

    async def _while_unloading(self) -> AsyncIterator[None]:
        if self._handle.state is ModelState.UNLOADING:
            yield
        await self._context.fleet.wait_unloaded(self._handle)
        yield
