"""The tools of a chat request, and which of them are to be called."""

import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from engine.grammar.schema.nulls import without_nulls
from server.protocol.errors import BRANCH_NAME, BRANCH_OBJECT, WRONG_BRANCH, bad_request, shorten
from server.protocol.json_values import check_json_value
from server.protocol.messages import Name, StrictModel

MAX_TOOLS = 512
MAX_TOOL_PROMPT_CHARS = 100_000
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class FunctionDefinition(StrictModel):
    """A function the model may call; its JSON Schema is `parameters` (OpenAI) or `arguments` (Hugging Face)."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    arguments: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("name")
    @classmethod
    def _name_is_plain(cls, value: str) -> str:
        if not _TOOL_NAME.fullmatch(value):
            raise ValueError(f"must be 1 to 64 letters, digits, underscores, dots and dashes, got {shorten(value)}")
        return value

    @model_validator(mode="after")
    def _one_schema(self) -> "FunctionDefinition":
        if self.parameters is not None and self.arguments is not None:
            raise ValueError("must have 'parameters' or 'arguments', not both")
        return self


class Tool(StrictModel):
    """A tool the model may call; only functions exist."""

    type: Literal["function"] = "function"
    function: FunctionDefinition

    @property
    def schema_field(self) -> str:
        """The name under which the schema came."""
        return "parameters" if self.function.arguments is None else "arguments"

    @property
    def schema_(self) -> dict[str, Any]:
        """JSON Schema of the arguments, which are an object; without one, that without members.

        A function of no parameters is declared without any (OpenAI's API reference, `tools.function.parameters`).
        """
        function = self.function
        given: dict[str, Any] | None = without_nulls(function.arguments or function.parameters)
        if not given:
            return {"type": "object", "properties": {}}
        kind = given.get("type")
        if kind is None or (isinstance(kind, list) and "object" in kind):
            return {"type": "object"} | given | {"type": "object"}
        return given

    def plain(self) -> dict[str, Any]:
        """OpenAI's object of the tool, as chat templates expect it."""
        function: dict[str, Any] = {"name": self.function.name}
        if self.function.description is not None:
            function["description"] = self.function.description
        return {"type": "function", "function": function | {"parameters": self.schema_}}


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


class DescribedTools(StrictModel):
    """The tools that a prompt tells the model of."""

    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_prompt: Annotated[str, Field(min_length=1, max_length=MAX_TOOL_PROMPT_CHARS)] | None = None


class ToolFields(DescribedTools):
    """The fields about tools."""

    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @property
    def named_tool(self) -> str | None:
        """The function that must be called."""
        return self.tool_choice.function.name if isinstance(self.tool_choice, NamedToolChoice) else None

    @property
    def usable_tools(self) -> list[tuple[int, Tool]]:
        """The tools that the model is told of, with their places in the request."""
        return [] if self.tool_choice == "none" else list(enumerate(self.tools or ()))


def check_described_tools(request: DescribedTools) -> set[str]:
    """The tools' names. Raises `ApiError` 400 for tools of one name, and for schemas that are not of an object."""
    names: set[str] = set()
    for index, tool in enumerate(request.tools or ()):
        name = tool.function.name
        if name in names:
            param = f"tools[{index}].function.name"
            raise bad_request(f"{param} is {shorten(name)}, as that of a tool before it", param=param)
        names.add(name)
        _check_schema(tool, f"tools[{index}].function.{tool.schema_field}")
    if not names and request.tool_prompt is not None:
        raise bad_request("tool_prompt needs tools", param="tool_prompt")
    return names


def check_tools(request: ToolFields) -> None:
    """Raise `ApiError` 400 for wrong tools, and for choices among tools that are not there."""
    names = check_described_tools(request)
    if not names:
        _check_without_tools(request)
    elif request.named_tool is not None and request.named_tool not in names:
        raise bad_request(
            f"tool_choice names the function {shorten(request.named_tool)}, which is not among the tools",
            param="tool_choice",
        )


def _check_schema(tool: Tool, param: str) -> None:
    schema = tool.schema_
    check_json_value(schema, param)
    if schema["type"] != "object":
        raise bad_request(
            f"{param}.type must be 'object', for arguments are an object, got {shorten(schema['type'])}",
            param=f"{param}.type",
        )


def _check_without_tools(request: ToolFields) -> None:
    if request.tool_choice not in (None, "none", "auto"):
        raise bad_request("tool_choice asks for a tool call, and there are no tools", param="tool_choice")
    if request.parallel_tool_calls is not None:
        raise bad_request("parallel_tool_calls needs tools", param="parallel_tool_calls")
