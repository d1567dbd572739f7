"""The conversation in a chat request: messages, their parts, and the tool calls of earlier turns."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
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
from server.protocol.parts import CacheHint, ContentPart
from server.protocol.strict_model import StrictModel

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
    tool_call_id: NameOrEmpty = None
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
        """What a chat template may read of the turn. It has content, be it empty, unless calls stand alone."""
        content: str | list[dict[str, Any]] | None
        said = self.content or ""
        content = said if isinstance(said, str) else [part.plain() for part in said if not part.is_thought]
        if not content:
            content = None if self.tool_calls or self.function_call else self.refusal or ""
        thoughts = None if self.reasoning or self.reasoning_content else self._thoughts()
        given = {
            "role": self.role,
            "content": content,
            "name": self.name,
            "tool_calls": [call.plain() for call in self.tool_calls or ()] or None,
            "tool_call_id": self.tool_call_id,
            "reasoning": self.reasoning or thoughts or None,
            "reasoning_content": self.reasoning_content or thoughts or None,
        }
        return {name: value for name, value in given.items() if value is not None}

    @property
    def text(self) -> str:
        """What the turn says in words, its parts end to end."""
        if isinstance(self.content, list):
            return "".join(part.words for part in self.content if not part.is_thought)
        return self.content or ""

    def _thoughts(self) -> str:
        parts = self.content if isinstance(self.content, list) else ()
        return "\n".join(part.words for part in parts if part.is_thought and part.words)

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
            for part in self.content if isinstance(self.content, list) else ():
                if part.is_thought:
                    raise ValueError(f"of role '{self.role}' must not have parts of type '{part.type}'")
        if self.role != "tool" and self.tool_call_id is not None:
            raise ValueError(f"of role '{self.role}' must not have the field 'tool_call_id'")
        if self.content is None and self.role not in _MAY_BE_EMPTY:
            raise ValueError(f"of role '{self.role}' must have content")
        if self.function_call is not None and self.tool_calls:
            raise ValueError("must have 'tool_calls' or 'function_call', not both")
        if self.reasoning and self.reasoning_content and self.reasoning != self.reasoning_content:
            raise ValueError("has a 'reasoning' and a 'reasoning_content' that differ")
        return self


_MAY_BE_EMPTY = ("system", "developer", "assistant", "tool", "function")
"""Roles of which a turn may have no content: calls stand alone, a tool may have nothing to say, and instructions may
be left blank. A user's turn without any is a mistake that its sender wants to hear of."""
