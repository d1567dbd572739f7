"""What the content of an answer is to match: all spellings of it, made one."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from engine.constraint import Constraint
from server.markup.frames import escape
from server.protocol.errors import bad_request
from server.protocol.json_values import check_json_value
from server.protocol.messages import Name, StrictModel

MAX_CHOICES = 1024
MAX_CHOICE_CHARS = 4096
MAX_GRAMMAR_CHARS = 200_000
ANY_OBJECT = '{"type": "object"}'


class JsonSchemaFormat(StrictModel):
    """OpenAI's wrapping of a JSON Schema. Unless `strict` is true it is followed as far as possible; without a schema,
    any object will do."""

    name: Name
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(StrictModel):
    """All spellings: `json` and `regex` with a `value`, `text`, `json_object`, and `json_schema`.

    A `json_object` with a `value` is what huggingface_hub's client makes of a `json_schema`.
    """

    type: Literal["text", "json_object", "json_schema", "json", "regex"]
    value: Any = None
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _has_what_type_says(self) -> "ResponseFormat":
        if self.type != "json_object" and (self.value is None) == (self.type in ("json", "regex")):
            raise ValueError(f"of type '{self.type}' {'must have a' if self.value is None else 'has no'} 'value'")
        if (self.json_schema is None) == (self.type == "json_schema"):
            verb = "must have a" if self.json_schema is None else "has no"
            raise ValueError(f"of type '{self.type}' {verb} 'json_schema'")
        if self.type == "regex" and not isinstance(self.value, str):
            raise ValueError("of type 'regex' must have a string as its 'value'")
        if self.type in ("json", "json_object") and not isinstance(self.value, str | dict | None):
            raise ValueError(f"of type '{self.type}' must have a JSON Schema, or its text, as its 'value'")
        return self


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
        case "json_object" if asked.value is None:
            return Constraint(kind="json_schema", source=ANY_OBJECT, param="response_format")
        case "json" | "json_object":
            source = asked.value if isinstance(asked.value, str) else json.dumps(asked.value, ensure_ascii=False)
            return Constraint(kind="json_schema", source=source, param="response_format.value")
    assert asked.json_schema is not None
    schema = asked.json_schema.schema_
    source = ANY_OBJECT if schema is None else json.dumps(schema, ensure_ascii=False)
    strict = asked.json_schema.strict is True
    return Constraint(kind="json_schema", source=source, param="response_format.json_schema.schema", strict=strict)


def check_constraints(request: ConstraintFields) -> None:
    """Raise `ApiError` 400 for more than one constraint, and for schemas that are no JSON."""
    asked = request.response_format
    constrains = asked is not None and asked.type != "text"
    given = [("response_format", constrains), ("grammar", request.grammar), ("choice", request.choice)]
    names = [name for name, value in given if value]
    if len(names) > 1:
        raise bad_request(f"{names[0]} and {names[1]} both constrain the answer; give one of them", param=names[1])
    if asked is not None and asked.json_schema is not None:
        check_json_value(asked.json_schema.schema_, "response_format.json_schema.schema")
    if asked is not None and asked.type in ("json", "json_object") and asked.value is not None:
        check_json_value(_parsed(asked.value), "response_format.value")


def _parsed(value: str | dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return value
    try:
        schema = json.loads(value)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict | bool):
        raise bad_request(
            "response_format.value must be a JSON Schema, or its text, and is text of another kind",
            param="response_format.value",
        )
    return schema
