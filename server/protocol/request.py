"""The body of POST /v1/chat/completions: the Hugging Face contract, OpenAI's spelling of it, and the extensions.

Everything a field can hold is bounded here, before anything is done with it. `parse_chat_request` is the one way in.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from engine.sampling_params import MAX_LOGPROBS
from server.errors import BRANCH_NAME, BRANCH_OBJECT, WRONG_BRANCH, bad_request, from_validation_error
from server.protocol.generation_request import GenerationRequest, TokenCount, check_stream_options
from server.protocol.json_values import check_json_value, check_object_keys
from server.protocol.messages import Name, StrictModel
from server.protocol.prompts import Conversation, check_conversation
from server.protocol.refusals import refuse_unsupported

MAX_TOOLS = 512


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


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(BRANCH_NAME)] | Annotated[NamedToolChoice, Tag(BRANCH_OBJECT)],
    Discriminator(
        _name_or_object,
        custom_error_type=WRONG_BRANCH,
        custom_error_message="must be 'none', 'auto', 'required' or an object that names a function",
    ),
]


class ChatCompletionRequest(GenerationRequest, Conversation):
    """A chat request as it came."""

    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    tool_prompt: str | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Annotated[str, Field(max_length=32)] | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = None
    store: bool | None = None
    service_tier: Annotated[str, Field(max_length=32)] | None = None

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


def _check_together(request: ChatCompletionRequest) -> None:
    """Fields that are right one by one and wrong together."""
    if request.top_logprobs is not None and not request.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true", param="top_logprobs")
    check_stream_options(request)
    check_conversation(request)
    limits = (request.max_tokens, request.max_completion_tokens)
    if None not in limits and limits[0] != limits[1]:
        raise bad_request(
            f"max_tokens ({limits[0]}) and max_completion_tokens ({limits[1]}) differ; give one of them",
            param="max_tokens",
        )
