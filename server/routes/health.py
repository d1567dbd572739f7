"""GET /health and /metrics: what other machines ask a server."""

from collections.abc import Iterable

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse

from server.context import LOADING_RETRY_SECONDS, ServerContext
from server.fleet.fleet import EngineHandle, ModelState
from server.metrics import CONTENT_TYPE, exposition

router = APIRouter()


@router.get("/health", summary="Whether every model can answer now")
async def health(request: Request) -> JSONResponse:
    """200 when every model is loaded and its engine was heard of lately, else 503 and the state of each."""
    context: ServerContext = request.app.state.context
    states = {name: _state(handle) for name, handle in context.fleet.handles.items()}
    status = "draining" if context.admission.draining else _worst(states.values())
    if status == "ready":
        return JSONResponse({"status": status, "models": states})
    progress = {
        name: {"stage": handle.progress.stage, "fraction": handle.progress.fraction}
        for name, handle in context.fleet.handles.items()
        if handle.state is ModelState.LOADING and handle.progress is not None
    }
    body = {"status": status, "models": states} | ({"progress": progress} if progress else {})
    return JSONResponse(body, status_code=503, headers={"Retry-After": str(LOADING_RETRY_SECONDS)})


@router.get("/metrics", summary="Counters and gauges in the Prometheus text format")
async def metrics(request: Request) -> PlainTextResponse:
    """A fixed set of series."""
    context: ServerContext = request.app.state.context
    context.counters.refused = context.admission.refused
    text = exposition(context.fleet.handles.values(), context.counters, context.admission.in_flight, context.images)
    return PlainTextResponse(text, media_type=CONTENT_TYPE)


def _state(handle: EngineHandle) -> str:
    return "stalled" if handle.state is ModelState.READY and not handle.is_live else handle.state.value


def _worst(states: Iterable[str]) -> str:
    found = set(states)
    for state in ("failed", "stalled", "restarting", "loading", "stopped"):
        if state in found:
            return state
    return "ready"
