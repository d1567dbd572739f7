"""The body of POST /v1/completions: OpenAI's legacy interface, for prompts that hold the template themselves."""

from typing import Annotated

from pydantic import Field

from engine.sampling_params import MAX_LOGPROBS
from server.protocol.constraints import ConstraintFields, check_constraints, restore_numbers
from server.protocol.errors import bad_request, unsupported
from server.protocol.exact_numbers import exact_body
from server.protocol.generation_request import MAX_INT, GenerationRequest
from server.protocol.json_values import check_object_keys
from server.protocol.messages import Integer
from server.protocol.prompts import MAX_PROMPTS, RawPrompts
from server.protocol.unknown_fields import parse_body

DEFAULT_MAX_TOKENS = 16
"""OpenAI's; a raw prompt has no turn that would end by itself."""


class CompletionRequest(ConstraintFields, GenerationRequest, RawPrompts):
    """A request for raw completions as it came."""

    max_tokens: Annotated[Integer, Field(ge=0, le=MAX_INT)] | None = None
    logprobs: Annotated[Integer, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None
    best_of: Annotated[Integer, Field(ge=1, le=MAX_INT)] | None = None
    suffix: str | None = None

    @property
    def default_max_tokens(self) -> int:
        """What holds where `max_tokens` is not given."""
        return DEFAULT_MAX_TOKENS

    @property
    def limit_param(self) -> str:
        """The field that limits the answer."""
        return "max_tokens"


def parse_completion_request(raw: bytes) -> CompletionRequest:
    """Read a request body. Raises `ApiError` 400 for what is malformed, out of bounds, or not done by this server."""
    return read_completion_request(raw)[0]


def read_completion_request(raw: bytes, *, ignore_unknown: bool = False) -> tuple[CompletionRequest, tuple[str, ...]]:
    """As `parse_completion_request`, and JSON pointers of the unknown fields that were ignored."""
    check_object_keys(raw)
    request, ignored = parse_body(CompletionRequest, raw, ignore_unknown=ignore_unknown)
    if (body := exact_body(raw)) is not None:
        restore_numbers(request.format_asked, body)
    _check_together(request)
    if request.suffix:
        raise unsupported("suffix", "suffix is not supported: text is only continued, never filled in")
    return request, ignored


def _check_together(request: CompletionRequest) -> None:
    """Fields that are right one by one and wrong together."""
    check_constraints(request)
    n, num_prompts = request.n or 1, len(request.prompts)
    if n * num_prompts > MAX_PROMPTS:
        raise bad_request(
            f"n ({n}) for each of {num_prompts} prompts are {n * num_prompts} choices, at most {MAX_PROMPTS} are "
            "allowed in one request",
            param="n",
        )
    if request.max_tokens == 0 and not request.echo:
        raise bad_request("max_tokens of 0 needs echo to be true: nothing else would be answered", param="max_tokens")
    best_of = n if request.best_of is None else request.best_of
    if best_of < n:
        raise bad_request(f"best_of ({best_of}) must be at least n ({n})", param="best_of")
    if best_of > n:
        raise unsupported(
            "best_of", f"best_of ({best_of}) above n ({n}) is not supported: every choice that is computed is answered"
        )
