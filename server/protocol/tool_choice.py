"""All ways to say which tools are called, made one.

OpenAI's are words, an object that names a function, and one that lists those allowed; a bare name and
`{"name": ...}` are Text Generation Inference's, `any` is Mistral's and Anthropic's word for `required`.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from server.protocol.errors import BRANCH_NAME, BRANCH_OBJECT, WRONG_BRANCH
from server.protocol.messages import Name
from server.protocol.strict_model import StrictModel

MAX_ALLOWED = 512

Mode = Literal["none", "auto", "required"]
_WORDS: dict[str, Mode] = {"none": "none", "auto": "auto", "required": "required", "any": "required"}


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether tools are called: not at all, as the model likes, or for certain."""

    mode: Mode = "auto"
    names: tuple[str, ...] | None = None
    """The tools that may be called, None for all."""
    is_named: bool = False
    """One function is named, which OpenAI's table of finish reasons tells apart."""


class FunctionName(StrictModel):
    """The function a tool choice names."""

    name: Name


class AllowedTool(StrictModel):
    """A tool that may be called, by its name, which may stand inside or outside of `function`."""

    type: Literal["function"] | None = "function"
    function: FunctionName | None = None
    name: Name | None = None

    @model_validator(mode="after")
    def _has_a_name(self) -> "AllowedTool":
        if (self.function is None) == (self.name is None):
            raise ValueError("must name one function")
        return self

    @property
    def called(self) -> str:
        """The function's name."""
        return self.name or (self.function.name if self.function is not None else "")


class AllowedTools(StrictModel):
    """The tools among which the model chooses; it is told of the others, and cannot call them."""

    mode: Literal["auto", "required"] = "auto"
    tools: Annotated[list[AllowedTool], Field(min_length=1, max_length=MAX_ALLOWED)]


class ToolChoiceObject(StrictModel):
    """A tool choice in an object, as its type says."""

    type: Literal["function", "tool", "allowed_tools", "none", "auto", "required", "any"] | None = None
    function: FunctionName | None = None
    name: Name | None = None
    allowed_tools: AllowedTools | None = None
    mode: Literal["auto", "required"] | None = None
    tools: Annotated[list[AllowedTool], Field(min_length=1, max_length=MAX_ALLOWED)] | None = None

    @property
    def allowed(self) -> AllowedTools | None:
        """The tools allowed, which may stand in an object of their own or beside the type."""
        if self.tools is not None:
            return AllowedTools(mode=self.mode or "auto", tools=self.tools)
        return self.allowed_tools

    @model_validator(mode="after")
    def _has_what_type_says(self) -> "ToolChoiceObject":
        given = {name for name in ("function", "name", "allowed_tools", "tools") if getattr(self, name) is not None}
        match self.type:
            case "allowed_tools":
                wanted: list[set[str]] = [{"allowed_tools"}, {"tools"}]
            case None | "function" | "tool":
                wanted = [{"function"}, {"name"}]
            case _:
                wanted = [set()]
        if given not in wanted:
            kind = f"of type '{self.type}'" if self.type else "without a type"
            fields = " or ".join(f"'{name}'" for names in wanted for name in names) or "no further field"
            raise ValueError(f"{kind} must have {fields}")
        return self


def _name_or_object(value: Any) -> str | None:
    if isinstance(value, str):
        return BRANCH_NAME
    return BRANCH_OBJECT if isinstance(value, dict | ToolChoiceObject | FunctionName) else None


ToolChoice = Annotated[
    Annotated[Name, Tag(BRANCH_NAME)] | Annotated[ToolChoiceObject, Tag(BRANCH_OBJECT)],
    Discriminator(
        _name_or_object,
        custom_error_type=WRONG_BRANCH,
        custom_error_message="must be 'none', 'auto', 'required', the name of a function, or an object that names some",
    ),
]
FunctionChoice = Annotated[
    Annotated[Name, Tag(BRANCH_NAME)] | Annotated[FunctionName, Tag(BRANCH_OBJECT)],
    Discriminator(
        _name_or_object,
        custom_error_type=WRONG_BRANCH,
        custom_error_message="must be 'none', 'auto', or an object that names a function",
    ),
]


def choice_of(given: str | ToolChoiceObject | FunctionName | None) -> Choice:
    """What a field chooses; without one, as the model likes. A word goes before a function of that name."""
    match given:
        case None:
            return Choice()
        case str():
            mode = _WORDS.get(given)
            return _named(given) if mode is None else Choice(mode)
        case FunctionName():
            return _named(given.name)
    if (allowed := given.allowed) is not None:
        return Choice(allowed.mode, tuple(dict.fromkeys(tool.called for tool in allowed.tools)))
    name = given.name if given.function is None else given.function.name
    return Choice(_WORDS[given.type or "auto"]) if name is None else _named(name)


def _named(name: str) -> Choice:
    return Choice("required", (name,), is_named=True)
