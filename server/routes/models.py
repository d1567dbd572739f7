"""GET /v1/models and /v1/models/{id}: what this server has, what it can do and how it samples by default."""

import dataclasses
import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from engine.config import EngineConfig
from engine.messages import EngineInfo
from server.context import ServerContext
from server.edge.auth import Caller
from server.fleet.fleet import Fleet
from server.fleet.handle import EngineHandle
from server.fleet.policy import ModelState
from server.fleet.reasons import public_reason

router = APIRouter()


@router.get("/v1/models", summary="List the models")
async def list_models(request: Request) -> JSONResponse:
    """Every model that this server has room for and the key may use, loaded or not."""
    context: ServerContext = request.app.state.context
    caller: Caller = request.state.caller
    listed = [handle for handle in context.fleet.listed if context.is_for(handle, caller)]
    return JSONResponse({"object": "list", "data": [describe(context.fleet, handle) for handle in listed]})


@router.get("/v1/models/{name:path}", summary="Describe one model")
async def get_model(request: Request, name: str) -> JSONResponse:
    """One model; its id may contain slashes."""
    context: ServerContext = request.app.state.context
    handle = context.model(name, request.state.caller)
    request.state.record.model = handle.name
    return JSONResponse(describe(context.fleet, handle))


def describe(fleet: Fleet, handle: EngineHandle) -> dict[str, Any]:
    """OpenAI's model object, and under further names what this server knows of it."""
    info, need = handle.info, fleet.residency.grants.of(handle.name)
    last_used = handle.holders.last_used
    entry: dict[str, Any] = {
        "id": handle.name,
        "object": "model",
        "created": handle.created,
        "owned_by": "headrace",
        "state": handle.standing,
        "load": handle.terms.residence.load,
        "last_used": None if last_used is None else round(time.time() - (time.monotonic() - last_used)),
        "memory_bytes": None if need is None else need.num_bytes,
        "requests": len(handle.holders),
        "sampling_defaults": dataclasses.asdict(handle.terms.defaults),
        "error": public_reason(handle) or None,
    }
    if handle.state is ModelState.LOADING and handle.progress is not None:
        entry["progress"] = {"stage": handle.progress.stage, "fraction": handle.progress.fraction}
    return entry | (_told(handle.config) if info is None else _learned(handle, info))


_LEARNED = (
    "context_length", "max_model_len", "architecture", "capabilities", "generation_config", "kv_cache_tokens",
    "weights_bytes", "kv_bytes", "load_seconds", "dtype", "device", "tensor_parallel",
)  # fmt: skip
"""What an engine says of its model."""


def _told(config: EngineConfig) -> dict[str, Any]:
    """What the settings say of a model that has not been loaded; the rest is null."""
    device = None if config.device == "auto" else config.device
    settings = {"context_length": config.context, "max_model_len": config.context, "device": device}
    return dict.fromkeys(_LEARNED) | settings | {"tensor_parallel": config.tensor_parallel}


def _learned(handle: EngineHandle, info: EngineInfo) -> dict[str, Any]:
    """What its engine has said; it stays when the model is unloaded."""
    values = (
        info.context, info.context, info.architecture, handle.capabilities, info.generation_defaults, info.kv_tokens,
        info.weights_bytes, info.kv_bytes, round(handle.supervision.load_seconds, 2), info.dtype, info.device,
        info.ranks,
    )  # fmt: skip
    return dict(zip(_LEARNED, values, strict=True))
