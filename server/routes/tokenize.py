"""POST /tokenize and /detokenize: what a prompt costs, and what tokens say, without computing anything."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response

from engine.messages import EngineInfo
from server.context import ServerContext, not_ready
from server.edge.limits import ClientGone
from server.prompt.plan import conversation_ids
from server.prompt.plan_completion import check_token_ids
from server.prompt.tokenizer import ChatTokenizer
from server.protocol.response import encode_json
from server.protocol.tokenize_request import (
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizeTextRequest,
    parse_detokenize_request,
    parse_tokenize_request,
)
from server.routes.answering import CLIENT_CLOSED_REQUEST, run_text_work

router = APIRouter()


class _NamesModel(Protocol):
    @property
    def model(self) -> str | None: ...


R = TypeVar("R", bound=_NamesModel)


@router.post("/tokenize", summary="The tokens of a prompt or a conversation")
async def tokenize(request: Request) -> Response:
    """The ids that a request with this prompt, or these messages, would be computed from."""
    return await _answer(request, parse_tokenize_request, _tokenize)


@router.post("/detokenize", summary="The text of tokens")
async def detokenize(request: Request) -> Response:
    """Control tokens are written out."""
    return await _answer(request, parse_detokenize_request, _detokenize)


async def _answer(
    request: Request, parse: Callable[[bytes], R], work: Callable[[R, ChatTokenizer, EngineInfo], dict[str, Any]]
) -> Response:
    """Read a request and do its work. Raises `ApiError`."""
    context: ServerContext = request.app.state.context
    ticket = context.admission.admit(1)
    try:
        raw = await context.admission.read_json_body(request.headers, request.receive)
        parsed = await run_text_work(len(raw), lambda: parse(raw))
        handle = context.model(parsed.model)
        tokenizer, info = handle.tokenizer, handle.info
        if tokenizer is None or info is None:
            raise not_ready(handle)
        content = await run_text_work(len(raw), lambda: encode_json(work(parsed, tokenizer, info)))
    except ClientGone:
        context.counters.disconnected += 1
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        ticket.release()
    return Response(content, media_type="application/json")


def _tokenize(
    request: TokenizeTextRequest | TokenizeChatRequest, tokenizer: ChatTokenizer, info: EngineInfo
) -> dict[str, Any]:
    if isinstance(request, TokenizeChatRequest):
        tools = [tool.plain() for tool in request.tools or ()]
        ids = conversation_ids(request, tokenizer, tools=tools, tool_prompt=request.tool_prompt)
    else:
        ids, _ = tokenizer.encode_raw(request.prompt, add_special_tokens=request.add_special_tokens is not False)
    return {
        "count": len(ids),
        "max_model_len": info.context,
        "tokens": ids,
        "token_strs": [tokenizer.token_text(token_id) for token_id in ids] if request.return_token_strs else None,
    }


def _detokenize(request: DetokenizeRequest, tokenizer: ChatTokenizer, info: EngineInfo) -> dict[str, Any]:
    check_token_ids(request.tokens, info, "tokens")
    return {"prompt": tokenizer.decode(request.tokens, skip_special_tokens=False)}
