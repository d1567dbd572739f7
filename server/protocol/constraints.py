"""What the content of an answer is to match: all spellings of it, made one."""

import re
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from engine.constraint import Constraint
from server.markup.frames import escape
from server.protocol.errors import bad_request
from server.protocol.exact_numbers import schema_text
from server.protocol.json_values import MAX_SCHEMA_INTEGER, check_json_value, json_decoder, read_json
from server.protocol.messages import Name, StrictModel

MAX_CHOICES = 1024
MAX_CHOICE_CHARS = 4096
MAX_GRAMMAR_CHARS = 200_000
_SCHEMA_IN_GRAMMAR = re.compile(r"%json\s*(?=\{)")
ANY_OBJECT = '{"type": "object"}'


class JsonSchemaFormat(StrictModel):
    """OpenAI's wrapping of a JSON Schema. Unless `strict` is true it is followed as far as possible; without a schema,
    any object will do."""

    name: Name | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


_WRAPPING = {"name", "description", "schema", "strict"}


class ResponseFormat(StrictModel):
    """All spellings: `json` and `regex` with a `value`, `text`, `json_object`, and `json_schema`.

    A schema may stand in `json_schema`, as OpenAI has it, in `value`, wrapped or not, as Text Generation Inference and
    huggingface_hub's client have it, or in `schema`, as llama.cpp has it.
    """

    type: Literal["text", "json_object", "json_schema", "json", "regex"]
    value: Any = None
    json_schema: JsonSchemaFormat | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")

    @model_validator(mode="after")
    def _has_what_type_says(self) -> "ResponseFormat":
        given = [name for name in ("value", "json_schema", "schema") if self._given(name) is not None]
        allowed, needed = _PLACES[self.type]
        for name in given:
            if name not in allowed:
                raise ValueError(f"of type '{self.type}' has no '{name}'")
        if needed and not given:
            raise ValueError(f"of type '{self.type}' must have a '{allowed[0]}'")
        if len(given) > 1:
            raise ValueError(f"must have '{given[0]}' or '{given[1]}', not both")
        if self.type == "regex" and not isinstance(self.value, str):
            raise ValueError("of type 'regex' must have a string as its 'value'")
        if not isinstance(self.value, str | dict | None):
            raise ValueError(f"of type '{self.type}' must have a JSON Schema, or its text, as its 'value'")
        return self

    def _given(self, name: str) -> Any:
        return self.schema_ if name == "schema" else getattr(self, name)

    @property
    def place(self) -> tuple[str, ...]:
        """Where the schema stands, as keys from here on; empty where there is none."""
        if self.json_schema is not None:
            return () if self.json_schema.schema_ is None else ("json_schema", "schema")
        if self.schema_ is not None:
            return ("schema",)
        if self.value is None or self.type == "regex":
            return ()
        return ("value", "schema") if self._is_wrapped else ("value",)

    @property
    def schema_given(self) -> Any:
        """The schema, or its text; None where there is none."""
        match self.place:
            case ():
                return None
            case ("json_schema", "schema"):
                assert self.json_schema is not None
                return self.json_schema.schema_
            case ("schema",):
                return self.schema_
            case ("value", "schema"):
                return self.value["schema"]
        return self.value

    @property
    def is_strict(self) -> bool:
        """Whether what cannot be followed of the schema is refused."""
        if self.type != "json_schema":
            return self.schema_ is None
        if self.json_schema is not None:
            return self.json_schema.strict is True
        return self._is_wrapped and self.value.get("strict") is True

    @property
    def _is_wrapped(self) -> bool:
        """Whether `value` holds OpenAI's object around the schema. A schema that has a keyword `schema` has others."""
        value = self.value
        if self.type != "json_schema" or not isinstance(value, dict) or not value.keys() <= _WRAPPING:
            return False
        return isinstance(value.get("schema"), dict)


_PLACES: dict[str, tuple[tuple[str, ...], bool]] = {
    "text": ((), False),
    "regex": (("value",), True),
    "json": (("value", "schema"), True),
    "json_object": (("value", "schema"), False),
    "json_schema": (("json_schema", "value", "schema"), True),
}
"""By type: where the schema or the expression may stand, and whether there must be one."""


class ConstraintFields(StrictModel):
    """The fields that constrain an answer, of which a request may use one."""

    response_format: ResponseFormat | None = None
    grammar: Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARS)] | None = None
    choice: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=MAX_CHOICE_CHARS)]],
            Field(min_length=1, max_length=MAX_CHOICES),
        ]
        | None
    ) = None

    def constraint(self) -> Constraint | None:
        """What the content must match, None if it is free. For requests that have been checked."""
        if self.grammar is not None:
            return Constraint(kind="lark", source=self.grammar, param="grammar")
        if self.choice is not None:
            alternatives = "|".join(escape(text) for text in dict.fromkeys(self.choice))
            return Constraint(kind="regex", source=f"({alternatives})", param="choice")
        return None if self.response_format is None else _of_format(self.response_format)


def _of_format(asked: ResponseFormat) -> Constraint | None:
    match asked.type:
        case "text":
            return None
        case "regex":
            return Constraint(kind="regex", source=asked.value, param="response_format.value")
    schema, param = asked.schema_given, ".".join(("response_format", *asked.place))
    if asked.type == "json_schema" and not asked.place:
        param = "response_format.json_schema.schema"
    source = ANY_OBJECT if schema is None else schema if isinstance(schema, str) else schema_text(schema)
    return Constraint(kind="json_schema", source=source, param=param, strict=asked.is_strict)


def restore_numbers(request: ConstraintFields, body: dict[str, Any]) -> None:
    """Let the schema of a request have the numbers of its body, which are exact."""
    asked = request.response_format
    if asked is None or not isinstance(schema := asked.schema_given, dict):
        return
    given = body["response_format"]
    for key in asked.place:
        given = given[key]
    schema.update(given)


def check_constraints(request: ConstraintFields) -> None:
    """Raise `ApiError` 400 for more than one constraint, and for schemas that are no JSON."""
    asked = request.response_format
    constrains = asked is not None and asked.type != "text"
    given = [("response_format", constrains), ("grammar", request.grammar), ("choice", request.choice)]
    names = [name for name, value in given if value]
    if len(names) > 1:
        raise bad_request(f"{names[0]} and {names[1]} both constrain the answer; give one of them", param=names[1])
    if request.grammar is not None:
        _check_grammar(request.grammar)
    if asked is not None and asked.place:
        param = ".".join(("response_format", *asked.place))
        check_json_value(_parsed(asked.schema_given, param), param, largest=MAX_SCHEMA_INTEGER)


def _check_grammar(grammar: str) -> None:
    """Look at the schemas that a grammar holds; what is wrong with them else, and what is no schema, shows later."""
    decoder = json_decoder(param="grammar")
    for found in _SCHEMA_IN_GRAMMAR.finditer(grammar):
        with suppress(ValueError, RecursionError):
            decoder.raw_decode(grammar, found.end())


def _parsed(value: str | dict[str, Any], param: str) -> Any:
    if isinstance(value, dict):
        return value
    try:
        schema = read_json(value, param=param)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict | bool):
        raise bad_request(f"{param} must be a JSON Schema, or its text, and is text of another kind", param=param)
    return schema
