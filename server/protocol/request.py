"""The body of POST /v1/chat/completions: the Hugging Face contract, OpenAI's spelling of it, and the extensions.

Everything a field can hold is bounded here, before anything is done with it. `parse_chat_request` is the one way in.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from engine.sampling_params import MAX_LOGPROBS
from server.protocol import constraints, tools
from server.protocol.constraints import ConstraintFields, check_constraints
from server.protocol.errors import bad_request
from server.protocol.exact_numbers import exact_body
from server.protocol.generation_request import MAX_INT, GenerationRequest, TokenCount
from server.protocol.hints import HintFields
from server.protocol.json_values import check_object_keys
from server.protocol.messages import Integer
from server.protocol.prompts import Conversation, check_conversation
from server.protocol.refusals import RefusedFields, refuse_unsupported
from server.protocol.tools import ToolFields, check_tools
from server.protocol.unknown_fields import parse_body

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max", "auto", "default"]


def _effort(value: Any) -> Any:
    """Other servers' words: the most there is, and as the model likes."""
    return {"max": "xhigh", "auto": None, "default": None}.get(value, value)


class ChatCompletionRequest(HintFields, RefusedFields, ConstraintFields, ToolFields, GenerationRequest, Conversation):
    """A chat request as it came."""

    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    reasoning_effort: Annotated[ReasoningEffort | None, AfterValidator(_effort)] = None
    max_reasoning_tokens: Annotated[Integer, Field(ge=0, le=MAX_INT)] | None = None

    @property
    def token_limit(self) -> int | None:
        """`max_completion_tokens` or its older name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def parse_chat_request(raw: bytes) -> ChatCompletionRequest:
    """Read a request body. Raises `ApiError` 400 for what is malformed, out of bounds, or not done by this server."""
    return read_chat_request(raw)[0]


def read_chat_request(raw: bytes, *, ignore_unknown: bool = False) -> tuple[ChatCompletionRequest, tuple[str, ...]]:
    """As `parse_chat_request`, and JSON pointers of the unknown fields that were ignored."""
    check_object_keys(raw)
    request, ignored = parse_body(ChatCompletionRequest, raw, ignore_unknown=ignore_unknown)
    if (body := exact_body(raw)) is not None:
        constraints.restore_numbers(request.format_asked, body)
        tools.restore_numbers(request, body)
    _check_together(request)
    refuse_unsupported(request)
    return request, ignored


def _check_together(request: ChatCompletionRequest) -> None:
    """Fields that are right one by one and wrong together."""
    if request.top_logprobs and not request.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true", param="top_logprobs")
    check_conversation(request)
    check_tools(request)
    check_constraints(request)
    if request.reasoning_effort is not None and request.max_reasoning_tokens is not None:
        raise bad_request(
            "reasoning_effort and max_reasoning_tokens both limit the reasoning; give one of them",
            param="max_reasoning_tokens",
        )
    limits = (request.max_tokens, request.max_completion_tokens)
    if None not in limits and limits[0] != limits[1]:
        raise bad_request(
            f"max_tokens ({limits[0]}) and max_completion_tokens ({limits[1]}) differ; give one of them",
            param="max_tokens",
        )
