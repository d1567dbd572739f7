"""The bodies of POST /tokenize and POST /detokenize, in the shapes of vLLM's routes of these names."""

import json
from typing import TypeVar

from server.protocol.generation_request import ModelName, TokenId
from server.protocol.json_values import check_object_keys
from server.protocol.messages import StrictModel
from server.protocol.prompts import Conversation, check_conversation
from server.protocol.tools import DescribedTools, check_described_tools
from server.protocol.unknown_fields import parse_body

M = TypeVar("M", bound=StrictModel)


class TokenizeTextRequest(StrictModel):
    """Which tokens a raw prompt is."""

    prompt: str
    add_special_tokens: bool | None = None
    model: ModelName | None = None
    return_token_strs: bool | None = None


class TokenizeChatRequest(DescribedTools, Conversation):
    """Which tokens a conversation is."""

    model: ModelName | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(StrictModel):
    """Which text tokens are, control tokens included."""

    tokens: list[TokenId]
    model: ModelName | None = None


def parse_tokenize_request(raw: bytes) -> TokenizeTextRequest | TokenizeChatRequest:
    """Read a request body; `messages` make it one of a conversation. Raises `ApiError` 400."""
    check_object_keys(raw)
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None  # the validator has the better words for what is no JSON
    if not isinstance(body, dict) or "messages" not in body:
        return _validated(TokenizeTextRequest, raw)
    request = _validated(TokenizeChatRequest, raw)
    check_conversation(request)
    check_described_tools(request)
    return request


def parse_detokenize_request(raw: bytes) -> DetokenizeRequest:
    """Read a request body. Raises `ApiError` 400."""
    check_object_keys(raw)
    return _validated(DetokenizeRequest, raw)


def _validated(model: type[M], raw: bytes) -> M:
    return parse_body(model, raw)[0]
