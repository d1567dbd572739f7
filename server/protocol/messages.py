"""The conversation in a chat request: messages, their parts, and the tool calls of earlier turns."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from server.protocol.errors import BRANCH_LIST, BRANCH_TEXT, WRONG_BRANCH
from server.protocol.json_values import check_json_value

MAX_PARTS = 256
MAX_TOOL_CALLS = 128
MAX_NAME_CHARS = 256

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]


def _whole(value: Any) -> Any:
    """To JSON, 5.0 is the integer 5, and some languages write it so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_whole)]
"""An integer of a request, however it is written."""


def _unless_empty(value: Any) -> Any:
    """An empty text says as little as null."""
    return None if value == "" else value


UNLESS_EMPTY = AfterValidator(_unless_empty)
NameOrEmpty = Annotated[Annotated[str, Field(max_length=MAX_NAME_CHARS)] | None, UNLESS_EMPTY]


class StrictModel(BaseModel):
    """Exact types, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True, hide_input_in_errors=True)


class ImageUrl(StrictModel):
    """Where an image is: an http(s) or data URL."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image of a conversation: where it stands in the request, and what it is."""

    param: str
    url: str
    detail: Literal["auto", "low", "high"] | None = None


CacheHint = dict[str, Any] | None
"""Where other servers should cache a prompt; here every prefix is cached, so it changes nothing."""

_PART_KINDS = ("text", "image_url", "refusal")


class ContentPart(StrictModel):
    """A piece of a message: `text`, `image_url` or `refusal`, whichever `type` says."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"type": {"const": kind}, kind: {"not": {"type": "null"}}}, "required": [kind]}
                for kind in _PART_KINDS
            ]
        }
    )

    type: Literal["text", "image_url", "refusal"]
    text: str | None = None
    image_url: ImageUrl | None = None
    refusal: str | None = None
    cache_control: CacheHint = None
    prompt_cache_breakpoint: CacheHint = None

    @model_validator(mode="after")
    def _has_what_type_says(self) -> "ContentPart":
        if getattr(self, self.type) is None:
            raise ValueError(f"of type '{self.type}' must have the field '{self.type}'")
        for other in _PART_KINDS:
            if other != self.type and getattr(self, other) is not None:
                raise ValueError(f"of type '{self.type}' must not have the field '{other}'")
        return self

    def plain(self) -> dict[str, Any]:
        """The part as chat templates know it; what an assistant refused with is text as any other."""
        if self.image_url is not None:
            return {"type": "image"}
        return {"type": "text", "text": self.text if self.refusal is None else self.refusal}


Arguments = Annotated[Any, WithJsonSchema({"type": ["string", "object", "null"]})]


class FunctionCall(StrictModel):
    """A function that was called, with its arguments as JSON text or as an object.

    They are `arguments`, or `parameters`, as Hugging Face's schema of a request and its client's types have it.
    """

    name: Name
    arguments: Arguments = None
    parameters: Arguments = None
    description: str | None = None
    parsed_arguments: Any = None
    """What openai-python has read of the arguments; they stand beside it."""
    provider_specific_fields: dict[str, Any] | None = None

    @field_validator("arguments", "parameters")
    @classmethod
    def _arguments_are_json(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and not isinstance(value, str | dict):
            raise ValueError("must be a string of JSON or an object")
        check_json_value(value, str(info.field_name))
        return value

    @model_validator(mode="after")
    def _one_spelling(self) -> "FunctionCall":
        if None not in (self.arguments, self.parameters):
            raise ValueError("must have 'arguments' or 'parameters', not both")
        return self

    def plain(self) -> dict[str, Any]:
        """The function with its arguments under OpenAI's name, by which chat templates know them."""
        given = self.arguments if self.parameters is None else self.parameters
        function = {"name": self.name, "arguments": given, "description": self.description}
        return {name: value for name, value in function.items() if value is not None}


class ToolCall(StrictModel):
    """A tool call of an earlier assistant turn."""

    id: NameOrEmpty = None
    function: FunctionCall
    type: Literal["function"] | None = "function"
    index: Annotated[Integer, Field(ge=0, le=MAX_TOOL_CALLS)] | None = None
    provider_specific_fields: dict[str, Any] | None = None
    extra_content: dict[str, Any] | None = None

    def plain(self) -> dict[str, Any]:
        """OpenAI's object, as chat templates expect it."""
        return {"id": self.id or f"call_{self.index or 0}", "type": "function", "function": self.function.plain()}


def text_or_list(value: Any) -> str | None:
    """The branch of a union of a string and an array that `value` belongs to."""
    if isinstance(value, str):
        return BRANCH_TEXT
    return BRANCH_LIST if isinstance(value, list) else None


Content = Annotated[
    Annotated[str, Tag(BRANCH_TEXT)] | Annotated[list[ContentPart], Field(max_length=MAX_PARTS), Tag(BRANCH_LIST)],
    Discriminator(
        text_or_list,
        custom_error_type=WRONG_BRANCH,
        custom_error_message="must be a string or an array of parts",
    ),
]


class ChatMessage(StrictModel):
    """One turn. An assistant's turn as a server or a client library has put it is accepted back unchanged."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None
    name: NameOrEmpty = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOL_CALLS)] | None = None
    tool_call_id: Name | None = None
    function_call: FunctionCall | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    cache_control: CacheHint = None
    # What follows stands in answers, so clients send it back; a conversation is the same without it.
    reasoning_details: list[Any] | None = None
    thinking_blocks: list[Any] | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    id: str | None = None
    parsed: Any = None
    provider_specific_fields: dict[str, Any] | None = None
    images: Annotated[list[Any], Field(max_length=0)] | None = None
    citations: list[Any] | None = None
    reasoning_text: str | None = None
    reasoning_opaque: str | None = None
    finish_reason: str | None = None
    timestamp: str | int | float | None = None
    is_error: bool | None = None

    def plain(self) -> dict[str, Any]:
        """What a chat template may read of the turn. One of an assistant or a tool has content, be it empty."""
        content: str | list[dict[str, Any]] | None
        if not self.content:
            content = None if self.tool_calls or self.function_call else self.refusal or ""
        elif isinstance(self.content, str):
            content = self.content
        else:
            content = [part.plain() for part in self.content]
        given = {
            "role": self.role,
            "content": content,
            "name": self.name,
            "tool_calls": [call.plain() for call in self.tool_calls or ()] or None,
            "tool_call_id": self.tool_call_id,
            "reasoning": self.reasoning or None,
            "reasoning_content": self.reasoning_content or None,
        }
        return {name: value for name, value in given.items() if value is not None}

    @field_validator("content")
    @classmethod
    def _some_roles_need_parts(cls, value: Any, info: ValidationInfo) -> Any:
        if value == [] and info.data.get("role") not in _MAY_BE_EMPTY:
            raise ValueError("must have at least 1 entries, got 0")
        return value

    @model_validator(mode="after")
    def _fields_fit_the_role(self) -> "ChatMessage":
        if self.role != "assistant":
            for name in ("tool_calls", "function_call", "reasoning", "reasoning_content"):
                if getattr(self, name):
                    raise ValueError(f"of role '{self.role}' must not have the field '{name}'")
        if self.role != "tool" and self.tool_call_id is not None:
            raise ValueError(f"of role '{self.role}' must not have the field 'tool_call_id'")
        if self.content is None and self.role not in _MAY_BE_EMPTY:
            raise ValueError(f"of role '{self.role}' must have content")
        if self.function_call is not None and self.tool_calls:
            raise ValueError("must have 'tool_calls' or 'function_call', not both")
        if self.reasoning and self.reasoning_content and self.reasoning != self.reasoning_content:
            raise ValueError("has a 'reasoning' and a 'reasoning_content' that differ")
        return self


_MAY_BE_EMPTY = ("assistant", "tool", "function")
"""Roles of which a turn may have no content: calls stand alone, and a tool may have nothing to say."""
