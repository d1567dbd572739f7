"""The conversation in a chat request: messages, their parts, and the tool calls of earlier turns."""

from typing import Annotated, Any, Literal

from pydantic import (
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


class StrictModel(BaseModel):
    """Exact types, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True, hide_input_in_errors=True)


class ImageUrl(StrictModel):
    """Where an image is: an http(s) or data URL."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ContentPart(StrictModel):
    """A piece of a message: `text` or `image_url`, whichever `type` says."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"type": {"const": kind}, kind: {"not": {"type": "null"}}}, "required": [kind]}
                for kind in ("text", "image_url")
            ]
        }
    )

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None

    @model_validator(mode="after")
    def _has_what_type_says(self) -> "ContentPart":
        if getattr(self, self.type) is None:
            raise ValueError(f"of type '{self.type}' must have the field '{self.type}'")
        other = "image_url" if self.type == "text" else "text"
        if getattr(self, other) is not None:
            raise ValueError(f"of type '{self.type}' must not have the field '{other}'")
        return self


Arguments = Annotated[Any, WithJsonSchema({"type": ["string", "object", "null"]})]


class FunctionCall(StrictModel):
    """A function that was called, with its arguments as JSON text or as an object.

    They are `arguments`, or `parameters`, as Hugging Face's schema of a request and its client's types have it.
    """

    name: Name
    arguments: Arguments = None
    parameters: Arguments = None
    description: str | None = None

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


class ToolCall(StrictModel):
    """A tool call of an earlier assistant turn."""

    id: Name
    function: FunctionCall
    type: Literal["function"] = "function"
    index: Annotated[Integer, Field(ge=0, le=MAX_TOOL_CALLS)] | None = None


def text_or_list(value: Any) -> str | None:
    """The branch of a union of a string and an array that `value` belongs to."""
    if isinstance(value, str):
        return BRANCH_TEXT
    return BRANCH_LIST if isinstance(value, list) else None


Content = Annotated[
    Annotated[str, Tag(BRANCH_TEXT)]
    | Annotated[list[ContentPart], Field(min_length=1, max_length=MAX_PARTS), Tag(BRANCH_LIST)],
    Discriminator(
        text_or_list,
        custom_error_type=WRONG_BRANCH,
        custom_error_message="must be a string or an array of parts",
    ),
]


class ChatMessage(StrictModel):
    """One turn. An assistant's turn as this server answers it is accepted back unchanged."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: Name | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOL_CALLS)] | None = None
    tool_call_id: Name | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None

    def plain(self) -> dict[str, Any]:
        """What was given, with the arguments of calls under OpenAI's name, by which chat templates know them."""
        given = self.model_dump(exclude_none=True)
        for call in given.get("tool_calls", ()):
            function = call["function"]
            if "parameters" in function:
                function["arguments"] = function.pop("parameters")
        return given

    @model_validator(mode="after")
    def _fields_fit_the_role(self) -> "ChatMessage":
        if self.role != "assistant":
            for name in ("tool_calls", "reasoning", "reasoning_content"):
                if getattr(self, name):
                    raise ValueError(f"of role '{self.role}' must not have the field '{name}'")
        if self.role != "tool" and self.tool_call_id is not None:
            raise ValueError(f"of role '{self.role}' must not have the field 'tool_call_id'")
        if self.content is None and not self.tool_calls:
            raise ValueError(f"of role '{self.role}' must have content")
        if None not in (self.reasoning, self.reasoning_content) and self.reasoning != self.reasoning_content:
            raise ValueError("has a 'reasoning' and a 'reasoning_content' that differ")
        return self
