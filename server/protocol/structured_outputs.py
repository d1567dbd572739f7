"""vLLM's spelling of what an answer is to match, `structured_outputs`; `server.protocol.constraints` makes all one."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from server.protocol.given_schemas import SchemaValue
from server.protocol.strict_model import StrictModel

MAX_CHOICES = 1024
MAX_CHOICE_CHARS = 4096
MAX_GRAMMAR_CHARS = 200_000

GrammarText = Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARS)]
ChoiceTexts = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_CHOICE_CHARS)]],
    Field(min_length=1, max_length=MAX_CHOICES),
]
_KINDS = ("json", "regex", "choice", "grammar", "json_object")
_SWITCHES = ("disable_any_whitespace", "disable_additional_properties", "disable_fallback")


class StructuredOutputs(StrictModel):
    """One of the ways to say what an answer is to match, and switches of the libraries behind them, which are off."""

    json_: SchemaValue = Field(default=None, alias="json")
    regex: str | None = None
    choice: ChoiceTexts | None = None
    grammar: GrammarText | None = None
    json_object: bool | None = None
    whitespace_pattern: str | None = None
    structural_tag: Any = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    disable_fallback: bool | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> "StructuredOutputs":
        for name in ("structural_tag", "whitespace_pattern"):
            if getattr(self, name) is not None:
                raise ValueError(f"has no '{name}' on this server")
        for name in _SWITCHES:
            if getattr(self, name):
                raise ValueError(f"must have a '{name}' of false: what it switches off is not done here")
        given = [name for name in _KINDS if self._value(name) not in (None, False)]
        if len(given) != 1:
            found = " and ".join(f"'{name}'" for name in given) or "none"
            raise ValueError(f"must have one of {', '.join(_KINDS)}, got {found}")
        return self

    def _value(self, name: str) -> Any:
        return self.json_ if name == "json" else getattr(self, name)
