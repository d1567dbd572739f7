"""GET /health, /livez, /readyz and /metrics: what other machines ask a server."""

import asyncio
from collections.abc import Iterable

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse

from server.context import LOADING_RETRY_SECONDS, ServerContext
from server.fleet.handle import EngineHandle
from server.fleet.policy import ModelState
from server.metrics import CONTENT_TYPE, exposition, gather

router = APIRouter()


@router.get("/health", summary="Whether the models of the start can answer now")
async def health(request: Request) -> JSONResponse:
    """200 when what is loaded at start can answer, else 503; with the state of every model.

    A model that comes and goes as it is asked for says nothing of the server, nor does one that was put away since.
    """
    context: ServerContext = request.app.state.context
    states = {handle.name: handle.standing for handle in context.fleet.listed}
    status = _status(context)
    if status == "ready":
        return JSONResponse({"status": status, "models": states})
    progress = {
        handle.name: {"stage": handle.progress.stage, "fraction": handle.progress.fraction}
        for handle in context.fleet.listed
        if handle.state is ModelState.LOADING and handle.progress is not None
    }
    body = {"status": status, "models": states} | ({"progress": progress} if progress else {})
    return JSONResponse(body, status_code=503, headers={"Retry-After": str(LOADING_RETRY_SECONDS)})


@router.get("/livez", summary="Whether the server's process answers")
async def livez(request: Request) -> JSONResponse:
    """Always 200: who gets no answer should start the server anew."""
    return JSONResponse({"status": "live"})


@router.get("/readyz", summary="Whether requests should be sent here")
async def readyz(request: Request) -> JSONResponse:
    """200 when what is loaded at start can answer now and there is a place for a request, else 503."""
    context: ServerContext = request.app.state.context
    status = _status(context)
    if status == "ready" and (context.admission.is_full or _has_full_queues(context)):
        status = "full"
    if status == "ready":
        return JSONResponse({"status": status})
    return JSONResponse({"status": status}, status_code=503, headers={"Retry-After": str(LOADING_RETRY_SECONDS)})


@router.get("/metrics", summary="Counters and gauges in the Prometheus text format")
async def metrics(request: Request) -> PlainTextResponse:
    """A fixed set of series."""
    context: ServerContext = request.app.state.context
    context.counters.refused = context.admission.refused + sum(queue.refused for queue in context.queues.values())
    fleet = context.fleet
    gathered = gather(
        fleet.handles.values(), context.counters, context.admission.in_flight, context.images, fleet.residency
    )
    # With many models it takes a while to write, for which no stream should wait.
    text = await asyncio.to_thread(exposition, gathered, aliases=context.vllm_names)
    return PlainTextResponse(text, media_type=CONTENT_TYPE)


def _status(context: ServerContext) -> str:
    """Where the server stands: the worst of the models that it began with."""
    if context.admission.draining:
        return "draining"
    return _worst(handle.standing for handle in context.fleet.at_start if _counts(handle))


def _has_full_queues(context: ServerContext) -> bool:
    """Whether no model of the start has room for one more that waits."""
    queues = [context.queue(handle) for handle in context.fleet.at_start]
    return bool(queues) and all(queue.is_full for queue in queues)


def _counts(handle: EngineHandle) -> bool:
    """Loading counts until the model has been loaded once, and after it has failed; else somebody has asked for it."""
    return handle.state is not ModelState.LOADING or handle.info is None or handle.is_missing


def _worst(states: Iterable[str]) -> str:
    found = set(states)
    for state in ("failed", "stalled", "restarting", "loading", "stopped"):
        if state in found:
            return state
    return "ready"
