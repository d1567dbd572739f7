"""The bodies of POST /tokenize and POST /detokenize, in the shapes of vLLM's routes of these names."""

import json

from server.protocol.generation_request import ModelName, TokenId
from server.protocol.hints import Label
from server.protocol.json_values import check_object_keys
from server.protocol.prompts import Conversation, check_conversation
from server.protocol.strict_model import StrictModel
from server.protocol.tools import DescribedTools, check_described_tools
from server.protocol.unknown_fields import parse_body


class TokenizeTextRequest(StrictModel):
    """Which tokens a raw prompt is."""

    prompt: str
    add_special_tokens: bool | None = None
    model: ModelName = None
    return_token_strs: bool | None = None
    return_cached_tokens: bool | None = None


class TokenizeChatRequest(DescribedTools, Conversation):
    """Which tokens a conversation is."""

    model: ModelName = None
    return_token_strs: bool | None = None
    return_cached_tokens: bool | None = None
    prompt_cache_key: Label | None = None


class DetokenizeRequest(StrictModel):
    """Which text tokens are, control tokens included."""

    tokens: list[TokenId]
    model: ModelName = None


def read_tokenize_request(
    raw: bytes, *, ignore_unknown: bool = False
) -> tuple[TokenizeTextRequest | TokenizeChatRequest, tuple[str, ...]]:
    """The request that a body holds; `messages` make it one of a conversation.

    With it come JSON pointers of the unknown fields that were ignored. Raises `ApiError` 400.
    """
    check_object_keys(raw)
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None  # the validator has the better words for what is no JSON
    if not isinstance(body, dict) or "messages" not in body:
        return parse_body(TokenizeTextRequest, raw, ignore_unknown=ignore_unknown)
    request, ignored = parse_body(TokenizeChatRequest, raw, ignore_unknown=ignore_unknown)
    check_conversation(request)
    check_described_tools(request)
    return request, ignored


def read_detokenize_request(raw: bytes, *, ignore_unknown: bool = False) -> tuple[DetokenizeRequest, tuple[str, ...]]:
    """The request that a body holds, and JSON pointers of what was ignored. Raises `ApiError` 400."""
    check_object_keys(raw)
    return parse_body(DetokenizeRequest, raw, ignore_unknown=ignore_unknown)
