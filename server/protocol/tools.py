"""The tools of a chat request, and which of them are to be called."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from engine.grammar.schema.nulls import without_nulls
from server.protocol.errors import bad_request, shorten
from server.protocol.given_schemas import SchemaValue, of_object, read_schema
from server.protocol.json_values import MAX_SCHEMA_INTEGER, check_json_value
from server.protocol.messages import Name
from server.protocol.parts import CacheHint
from server.protocol.strict_model import StrictModel
from server.protocol.tool_choice import Choice, FunctionChoice, ToolChoice, choice_of

MAX_TOOLS = 512
MAX_TOOL_PROMPT_CHARS = 100_000
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")
_REMARKS = frozenset({"type", "required", "title", "description", "$schema", "$id", "$comment", "examples", "default"})
"""Keywords that say nothing of an object's members, `required` where it is empty."""

T = TypeVar("T")


class FunctionDefinition(StrictModel):
    """A function the model may call; its JSON Schema is `parameters` (OpenAI) or `arguments` (Hugging Face)."""

    name: Name
    description: str | None = None
    parameters: SchemaValue = None
    arguments: SchemaValue = None
    strict: bool | None = None
    cache_control: CacheHint = None

    @field_validator("name")
    @classmethod
    def _name_is_plain(cls, value: str) -> str:
        if not _TOOL_NAME.fullmatch(value):
            raise ValueError(f"must be 1 to 64 letters, digits, and of _ . - : /, got {shorten(value)}")
        return value

    @model_validator(mode="after")
    def _one_schema(self) -> "FunctionDefinition":
        if self.parameters is not None and self.arguments is not None:
            raise ValueError("must have 'parameters' or 'arguments', not both")
        return self


class Tool(StrictModel):
    """A tool the model may call; only functions exist."""

    type: Literal["function"] | None = "function"
    function: FunctionDefinition
    cache_control: CacheHint = None

    @property
    def schema_field(self) -> str:
        """The name under which the schema came."""
        return "parameters" if self.function.arguments is None else "arguments"

    @property
    def schema_(self) -> dict[str, Any]:
        """JSON Schema of the arguments, which are an object; without one, that without members.

        A function of no parameters is declared without any (OpenAI's API reference, `tools.function.parameters`), or
        with an object of which nothing is said; one that takes any members says `additionalProperties`.
        """
        return self.read_schema(self.schema_field)

    def read_schema(self, param: str) -> dict[str, Any]:
        """As `schema_`. Raises `ApiError` 400 on `param` for what is no schema, or none of an object."""
        function = self.function
        given = function.parameters if function.arguments is None else function.arguments
        if given is None or (isinstance(given, str) and not given.strip()):
            return {"type": "object", "properties": {}}
        found = read_schema(given, param)
        schema = without_nulls(found.schema) if isinstance(found.schema, dict) else found.schema
        said = of_object(schema, ".".join((param, *found.place)), "for arguments are an object")
        is_bare = schema is not True and _REMARKS.issuperset(said) and not said.get("required")
        return said | {"properties": {}} if is_bare else said

    def plain(self) -> dict[str, Any]:
        """OpenAI's object of the tool, as chat templates expect it."""
        function: dict[str, Any] = {"name": self.function.name}
        if self.function.description is not None:
            function["description"] = self.function.description
        return {"type": "function", "function": function | {"parameters": self.schema_}}


class DescribedTools(StrictModel):
    """The tools that a prompt tells the model of."""

    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_prompt: Annotated[str, Field(max_length=MAX_TOOL_PROMPT_CHARS)] | None = None

    @property
    def declared_tools(self) -> list[Tool]:
        """The tools of the request."""
        return list(self.tools or ())

    def function_path(self, index: int) -> str:
        """Where in the request a declared function stands."""
        return f"tools[{index}].function"


class ToolFields(DescribedTools):
    """The fields about tools; `functions` and `function_call` are OpenAI's older names of tools and their choice."""

    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[FunctionDefinition], Field(max_length=MAX_TOOLS)] | None = None
    function_call: FunctionChoice | None = None

    @property
    def declared_tools(self) -> list[Tool]:
        """The tools, be they called so or functions."""
        return list(self.tools or ()) or [Tool(function=function) for function in self.functions or ()]

    @property
    def calls_functions(self) -> bool:
        """Whether calls are wanted in the older form, of one function at most."""
        return bool(self.functions) and not self.tools

    @property
    def chosen(self) -> Choice:
        """Which of the tools are called."""
        given = self.function_call if self.calls_functions else self.tool_choice
        return choice_of(given)

    @property
    def choice_param(self) -> str:
        """The field that chooses among the tools."""
        return "function_call" if self.calls_functions else "tool_choice"

    @property
    def usable_tools(self) -> list[tuple[int, Tool]]:
        """The tools that the model is told of, with their places in the request."""
        return [] if self.chosen.mode == "none" else list(enumerate(self.declared_tools))

    def function_path(self, index: int) -> str:
        """Where in the request a declared function stands."""
        return f"functions[{index}]" if self.calls_functions else super().function_path(index)


def restore_numbers(request: DescribedTools, body: dict[str, Any]) -> None:
    """Let the schemas of a request's tools have the numbers of its body, which are exact."""
    pairs = [(tool.function, given["function"]) for tool, given in _paired(request.tools, body.get("tools"))]
    if isinstance(request, ToolFields):
        pairs += _paired(request.functions, body.get("functions"))
    for function, given in pairs:
        for name in ("parameters", "arguments"):
            schema = getattr(function, name)
            if isinstance(schema, dict):
                schema.update(given[name])


def _paired(declared: Sequence[T] | None, given: list[Any] | None) -> list[tuple[T, Any]]:
    return list(zip(declared or (), given or (), strict=True))


def check_described_tools(request: DescribedTools) -> set[str]:
    """The tools' names. Raises `ApiError` 400 for tools of one name, and for schemas that are not of an object."""
    names: set[str] = set()
    for index, tool in enumerate(request.declared_tools):
        name, path = tool.function.name, request.function_path(index)
        if name in names:
            raise bad_request(f"{path}.name is {shorten(name)}, as that of a tool before it", param=f"{path}.name")
        names.add(name)
        _check_schema(tool, f"{path}.{tool.schema_field}")
    if not names and request.tool_prompt:
        raise bad_request("tool_prompt needs tools", param="tool_prompt")
    return names


def check_tools(request: ToolFields) -> None:
    """Raise `ApiError` 400 for wrong tools, and for choices among tools that are not there."""
    names = check_described_tools(request)
    if request.tools and request.functions:
        raise bad_request("functions is the older name of tools; give one of them", param="functions")
    for param in ("tool_choice", "function_call"):
        _check_choice(param, choice_of(getattr(request, param)), names if request.choice_param == param else set())


def _check_choice(param: str, choice: Choice, names: set[str]) -> None:
    """Raise `ApiError` 400 for what there is not to be chosen; a choice that asks for nothing needs no tools."""
    if not names and (choice.mode == "required" or choice.names is not None):
        raise bad_request(f"{param} asks for a tool call, and there are no tools", param=param)
    unknown = next((name for name in choice.names or () if name not in names), None)
    if unknown is not None:
        raise bad_request(f"{param} names the function {shorten(unknown)}, which is not among the tools", param=param)


def _check_schema(tool: Tool, param: str) -> None:
    check_json_value(tool.read_schema(param), param, largest=MAX_SCHEMA_INTEGER)
