"""The body of POST /v1/chat/completions: the Hugging Face contract, OpenAI's spelling of it, and the extensions.

Everything a field can hold is bounded here, before anything is done with it. `parse_chat_request` is the one way in.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from engine.sampling_params import MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_SEED, MAX_STOP_TOKEN_IDS
from server.errors import (
    BRANCH_LIST,
    BRANCH_NAME,
    BRANCH_OBJECT,
    BRANCH_TEXT,
    WRONG_BRANCH,
    bad_request,
    from_validation_error,
)
from server.protocol.json_values import check_json_value, check_object_keys
from server.protocol.messages import ChatMessage, Name, StrictModel, text_or_list
from server.protocol.refusals import refuse_unsupported

MAX_MESSAGES = 4096
MAX_N = 16
MAX_STOP_STRINGS = 4
MAX_STOP_CHARS = 1024
MAX_TOOLS = 512
MAX_INT = 2**31 - 1

TokenCount = Annotated[int, Field(ge=1, le=MAX_INT)]
TokenId = Annotated[int, Field(ge=0, le=MAX_INT)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class StreamOptions(StrictModel):
    """What a stream reports besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchemaFormat(StrictModel):
    """OpenAI's wrapping of a JSON Schema."""

    name: Name
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(StrictModel):
    """All five spellings: `json` and `regex` with a `value`, `text`, `json_object`, and `json_schema`."""

    type: Literal["text", "json_object", "json_schema", "json", "regex"]
    value: Any = None
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _has_what_type_says(self) -> "ResponseFormat":
        if (self.value is None) == (self.type in ("json", "regex")):
            raise ValueError(f"of type '{self.type}' {'must have a' if self.value is None else 'has no'} 'value'")
        if (self.json_schema is None) == (self.type == "json_schema"):
            verb = "must have a" if self.json_schema is None else "has no"
            raise ValueError(f"of type '{self.type}' {verb} 'json_schema'")
        if self.type == "regex" and not isinstance(self.value, str):
            raise ValueError("of type 'regex' must have a string as its 'value'")
        if self.type == "json" and not isinstance(self.value, str | dict):
            raise ValueError("of type 'json' must have a JSON Schema, or its text, as its 'value'")
        return self


class FunctionDefinition(StrictModel):
    """A function the model may call; its JSON Schema is `parameters` (OpenAI) or `arguments` (Hugging Face)."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    arguments: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _one_schema(self) -> "FunctionDefinition":
        if self.parameters is not None and self.arguments is not None:
            raise ValueError("must have 'parameters' or 'arguments', not both")
        return self


class Tool(StrictModel):
    """A tool the model may call; only functions exist."""

    type: Literal["function"] = "function"
    function: FunctionDefinition


class FunctionName(StrictModel):
    """The function a tool choice names."""

    name: Name


class NamedToolChoice(StrictModel):
    """Call exactly this function."""

    type: Literal["function"] = "function"
    function: FunctionName


def _name_or_object(value: Any) -> str | None:
    if isinstance(value, str):
        return BRANCH_NAME
    return BRANCH_OBJECT if isinstance(value, dict | NamedToolChoice) else None


Stop = Annotated[
    Annotated[StopString, Tag(BRANCH_TEXT)]
    | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS), Tag(BRANCH_LIST)],
    Discriminator(
        text_or_list, custom_error_type=WRONG_BRANCH, custom_error_message="must be a string or an array of strings"
    ),
]
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(BRANCH_NAME)] | Annotated[NamedToolChoice, Tag(BRANCH_OBJECT)],
    Discriminator(
        _name_or_object,
        custom_error_type=WRONG_BRANCH,
        custom_error_message="must be 'none', 'auto', 'required' or an object that names a function",
    ),
]


class ChatCompletionRequest(StrictModel):
    """A chat request as it came. `null` means that a field was not given."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    model: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    logit_bias: (
        Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_LOGIT_BIAS)] | None
    ) = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    seed: Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED)] | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    tool_prompt: str | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Annotated[str, Field(max_length=32)] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = None
    store: bool | None = None
    service_tier: Annotated[str, Field(max_length=32)] | None = None
    top_k: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=32)] | None = None

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _logit_bias_is_a_map(cls, value: Any) -> Any:
        if isinstance(value, list):
            raise ValueError("must be an object of token ids and biases; the array form has no defined meaning")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _logit_bias_keys_are_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or ():
            # isdecimal alone would pass digits of other scripts.
            if not (key.isascii() and key.isdecimal() and len(key) <= 10 and (key == "0" or key[0] != "0")):
                raise ValueError(f"must have token ids as keys, got {key[:40]!r}")
        return value

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` in its plural form, without repetitions."""
        return tuple(dict.fromkeys([self.stop] if isinstance(self.stop, str) else self.stop or []))

    @property
    def token_limit(self) -> int | None:
        """`max_completion_tokens` or its older name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def parse_chat_request(raw: bytes) -> ChatCompletionRequest:
    """Read a request body. Raises `ApiError` 400 for what is malformed, out of bounds, or not done by this server."""
    check_object_keys(raw)
    try:
        request = ChatCompletionRequest.model_validate_json(raw)
    except ValidationError as error:
        raise from_validation_error(error) from None
    _check_untyped(request)
    _check_together(request)
    refuse_unsupported(request)
    return request


def _check_untyped(request: ChatCompletionRequest) -> None:
    """The JSON that the models above leave as it came."""
    if request.response_format is not None:
        check_json_value(request.response_format.value, "response_format.value")
        if request.response_format.json_schema is not None:
            check_json_value(request.response_format.json_schema.schema_, "response_format.json_schema.schema")
    for index, tool in enumerate(request.tools or ()):
        check_json_value(tool.function.parameters, f"tools[{index}].function.parameters")
        check_json_value(tool.function.arguments, f"tools[{index}].function.arguments")
    check_json_value(request.chat_template_kwargs, "chat_template_kwargs")


def _check_together(request: ChatCompletionRequest) -> None:
    """Fields that are right one by one and wrong together."""
    if request.top_logprobs is not None and not request.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true", param="top_logprobs")
    if request.stream_options is not None and not request.stream:
        raise bad_request("stream_options needs stream to be true", param="stream_options")
    limits = (request.max_tokens, request.max_completion_tokens)
    if None not in limits and limits[0] != limits[1]:
        raise bad_request(
            f"max_tokens ({limits[0]}) and max_completion_tokens ({limits[1]}) differ; give one of them",
            param="max_tokens",
        )
    if request.continue_final_message:
        if request.add_generation_prompt:
            raise bad_request(
                "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
            )
        if request.messages[-1].role != "assistant":
            raise bad_request(
                "continue_final_message needs a last message of role 'assistant', "
                f"got one of role '{request.messages[-1].role}'",
                param="continue_final_message",
            )
