"""The body of POST /generate: Text Generation Inference's interface for raw prompts, on the road of completions.

Source: the API of Text Generation Inference, as huggingface_hub's `text_generation` and Outlines' `from_tgi` speak it.
"""

from typing import Annotated, Any

from pydantic import Field

from engine.constraint import Constraint
from engine.sampling_params import MAX_SEED
from server.protocol.completion_request import CompletionRequest
from server.protocol.constraints import ResponseFormat, check_format, of_format, restore_numbers
from server.protocol.errors import unsupported
from server.protocol.exact_numbers import exact_body
from server.protocol.generation_request import MAX_STOP_STRINGS, ModelName, Penalty, StopString, TokenCount
from server.protocol.json_values import check_object_keys
from server.protocol.messages import Integer
from server.protocol.strict_model import StrictModel
from server.protocol.unknown_fields import parse_body

DEFAULT_NEW_TOKENS = 100
"""Text Generation Inference's."""
GRAMMAR = "parameters.grammar"


class GenerateParameters(StrictModel):
    """What `parameters` may hold; null and what asks for nothing are as if they were not there."""

    max_new_tokens: TokenCount | None = None
    do_sample: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_k: Annotated[Integer, Field(ge=0, le=2**31 - 1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[Integer, Field(ge=0, le=MAX_SEED)] | None = None
    stop: Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = None
    grammar: ResponseFormat | None = None
    return_full_text: bool | None = None
    details: bool | None = None
    top_n_tokens: Integer | None = None
    best_of: Integer | None = None
    typical_p: float | None = None
    truncate: Integer | None = None
    watermark: bool | None = None
    decoder_input_details: bool | None = None
    adapter_id: str | None = None

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn: where it is said, and where an option says how."""
        return bool(self.do_sample or self.temperature not in (None, 1) or self.top_k or self.top_p not in (None, 1))


class GenerateRequest(StrictModel):
    """A request of this interface as it came. `model` is beside it, for servers with several."""

    inputs: str
    parameters: GenerateParameters | None = None
    stream: bool | None = None
    model: ModelName = None

    @property
    def format_asked(self) -> tuple[ResponseFormat, str] | None:
        """The format that is asked for, and the field where it is."""
        asked = None if self.parameters is None else self.parameters.grammar
        return None if asked is None else (asked, GRAMMAR)

    def completion(self) -> CompletionRequest:
        """The same in OpenAI's words. Stop strings are shown here, and a stream's tokens have log-probabilities."""
        given = self.parameters or GenerateParameters()
        scored = bool(self.stream or given.details)
        fields: dict[str, Any] = {
            "temperature": given.temperature if given.samples else 0,
            "frequency_penalty": given.frequency_penalty,
            "repetition_penalty": given.repetition_penalty,
        }
        return _Generated(
            prompt=self.inputs, model=self.model, stream=self.stream, max_tokens=given.max_new_tokens,
            top_k=given.top_k, top_p=given.top_p, seed=given.seed, stop=given.stop, response_format=given.grammar,
            echo=bool(given.return_full_text), include_stop_str_in_output=True,
            logprobs=0 if scored else None, **fields,
        )  # fmt: skip


class _Generated(CompletionRequest):
    """A completion whose fields have the names of this interface."""

    @property
    def prompts(self) -> list[tuple[str, str | list[int]]]:
        """See `RawPrompts.prompts`."""
        assert isinstance(self.prompt, str)
        return [("inputs", self.prompt)]

    @property
    def default_max_tokens(self) -> int:
        """See `CompletionRequest`."""
        return DEFAULT_NEW_TOKENS

    @property
    def limit_param(self) -> str:
        """See `CompletionRequest`."""
        return "parameters.max_new_tokens"

    def constraint(self) -> Constraint | None:
        """See `ConstraintFields`."""
        return None if self.response_format is None else of_format(self.response_format, GRAMMAR)


def read_generate_request(
    raw: bytes, *, ignore_unknown: bool = False, stream: bool | None = None
) -> tuple[CompletionRequest, tuple[str, ...]]:
    """The completion that a body asks for, and JSON pointers of the unknown fields that were ignored.

    `stream` stands in the place of the body's own. Raises `ApiError` 400 for what is malformed, out of bounds, or not
    done by this server.
    """
    check_object_keys(raw)
    request, ignored = parse_body(GenerateRequest, raw, ignore_unknown=ignore_unknown)
    if (body := exact_body(raw)) is not None:
        restore_numbers(request.format_asked, body)
    if request.parameters is not None:
        _refuse(request.parameters)
    check_format(request.format_asked)
    if stream is not None:
        request = request.model_copy(update={"stream": stream})
    return request.completion(), ignored


def _refuse(given: GenerateParameters) -> None:
    """Raise `ApiError` 400 for the first thing asked for that is not done here."""
    refusals = {
        "best_of": (given.best_of not in (None, 1), "every choice that is computed is answered"),
        "typical_p": (given.typical_p not in (None, 1), "top_p and top_k are there"),
        "top_n_tokens": (bool(given.top_n_tokens), "/v1/completions has logprobs"),
        "truncate": (given.truncate is not None, "nothing is cut to fit"),
        "watermark": (bool(given.watermark), "answers are not marked"),
        "decoder_input_details": (bool(given.decoder_input_details), "/v1/completions scores prompts"),
        "adapter_id": (given.adapter_id is not None, "there are no adapters"),
    }
    for name, (is_asked, why) in refusals.items():
        if is_asked:
            raise unsupported(f"parameters.{name}", f"parameters.{name} is not supported: {why}")
