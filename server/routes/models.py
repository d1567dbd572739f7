"""GET /v1/models and /v1/models/{id}: what this server has, what it can do and how it samples by default."""

import dataclasses
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from server.context import ServerContext
from server.fleet.capabilities import capabilities
from server.fleet.fleet import EngineHandle, ModelState

router = APIRouter()


@router.get("/v1/models", summary="List the models")
async def list_models(request: Request) -> JSONResponse:
    """Every model of this server, loaded or not."""
    context: ServerContext = request.app.state.context
    return JSONResponse({"object": "list", "data": [describe(handle) for handle in context.fleet.handles.values()]})


@router.get("/v1/models/{name:path}", summary="Describe one model")
async def get_model(request: Request, name: str) -> JSONResponse:
    """One model; its id may contain slashes."""
    context: ServerContext = request.app.state.context
    return JSONResponse(describe(context.model(name)))


def describe(handle: EngineHandle) -> dict[str, Any]:
    """OpenAI's model object, and under further names what this server knows of it."""
    info, tokenizer = handle.info, handle.tokenizer
    entry: dict[str, Any] = {
        "id": handle.name,
        "object": "model",
        "created": handle.created,
        "owned_by": "headrace",
        "state": handle.state.value,
    }
    if handle.state is ModelState.LOADING and handle.progress is not None:
        entry["progress"] = {"stage": handle.progress.stage, "fraction": handle.progress.fraction}
    if info is not None and tokenizer is not None:
        entry |= {
            "context_length": info.context,
            "max_model_len": info.context,
            "architecture": info.architecture,
            "capabilities": capabilities(handle.config, tokenizer, sees=info.images is not None),
            "sampling_defaults": dataclasses.asdict(handle.defaults),
            "generation_config": info.generation_defaults,
            "kv_cache_tokens": info.kv_tokens,
            "dtype": info.dtype,
            "device": info.device,
        }
    return entry
