"""What the content of an answer is to match: all spellings of it, made one."""

import dataclasses
import re
from contextlib import suppress
from typing import Any, Literal

from pydantic import Field, model_validator

from engine.constraint import Constraint
from server.markup.frames import escape
from server.protocol.errors import bad_request
from server.protocol.exact_numbers import schema_text
from server.protocol.given_schemas import GivenSchema, SchemaValue, of_object, read_schema
from server.protocol.json_values import MAX_SCHEMA_INTEGER, check_json_value, json_decoder
from server.protocol.strict_model import StrictModel
from server.protocol.structured_outputs import ChoiceTexts, GrammarText, StructuredOutputs

_SCHEMA_IN_GRAMMAR = re.compile(r"%json\s*(?=\{)")
ANY_OBJECT = '{"type": "object"}'


class JsonSchemaFormat(StrictModel):
    """OpenAI's wrapping of a JSON Schema. Unless `strict` is true it is followed as far as possible; without a schema,
    any object will do."""

    name: str | None = None
    description: str | None = None
    schema_: SchemaValue = Field(default=None, alias="schema")
    value: SchemaValue = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _one_schema(self) -> "JsonSchemaFormat":
        if self.schema_ is not None and self.value is not None:
            raise ValueError("must have 'schema' or 'value', not both")
        return self


class ResponseFormat(StrictModel):
    """All spellings: `json` and `regex` with a `value`, `text`, `json_object`, and `json_schema`.

    A schema may stand in `json_schema`, as OpenAI has it, in `value`, as Text Generation Inference and
    huggingface_hub's client have it, or in `schema`, as llama.cpp has it, with what else is in OpenAI's wrapping beside
    it, as OpenAI's newer interface has it. In each place it may be wrapped once more, and be text.
    """

    type: Literal["text", "json_object", "json_schema", "json", "regex"]
    value: Any = None
    json_schema: JsonSchemaFormat | None = None
    schema_: SchemaValue = Field(default=None, alias="schema")
    name: str | None = None
    description: str | None = None
    strict: bool | None = None

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
        if not isinstance(self.value, str | dict | bool | None):
            raise ValueError(f"of type '{self.type}' must have a JSON Schema, or its text, as its 'value'")
        return self

    def _given(self, name: str) -> Any:
        return self.schema_ if name == "schema" else getattr(self, name)

    @property
    def place(self) -> tuple[str, ...]:
        """Where what holds the schema stands, as keys from here on; empty where there is none."""
        if self.json_schema is not None:
            names = ("value",) if self.json_schema.schema_ is None else ("schema",)
            return () if self.json_schema.schema_ is self.json_schema.value is None else ("json_schema", *names)
        if self.schema_ is not None:
            return ("schema",)
        return () if self.value is None or self.type == "regex" else ("value",)

    @property
    def schema_given(self) -> Any:
        """The schema, in a wrapper or as text, as it came; None where there is none."""
        holder, value = self.json_schema, self.value
        if holder is not None:
            return holder.value if holder.schema_ is None else holder.schema_
        return value if self.schema_ is None else self.schema_

    def is_strict(self, wrapped: bool | None) -> bool:
        """Whether what cannot be followed of the schema is refused; `wrapped` is what a wrapper in it says."""
        holder = None if self.json_schema is None else self.json_schema.strict
        said = next((strict for strict in (self.strict, holder, wrapped) if strict is not None), None)
        if said is not None:
            return said
        return self.type != "json_schema" and self.schema_ is None


_PLACES: dict[str, tuple[tuple[str, ...], bool]] = {
    "text": ((), False),
    "regex": (("value",), True),
    "json": (("value", "schema"), True),
    "json_object": (("value", "schema"), False),
    "json_schema": (("json_schema", "value", "schema"), True),
}
"""By type: where the schema or the expression may stand, and whether there must be one."""


class _SchemaAlone(ResponseFormat):
    """A format whose schema stands in a field of another name than `value`."""

    field: str

    @property
    def place(self) -> tuple[str, ...]:
        """See `ResponseFormat.place`."""
        return (self.field,)


class ConstraintFields(StrictModel):
    """The fields that constrain an answer, of which a request may use one."""

    response_format: ResponseFormat | None = None
    grammar: GrammarText | None = None
    choice: ChoiceTexts | None = None
    structured_outputs: StructuredOutputs | None = None

    def constraint(self) -> Constraint | None:
        """What the content must match, None if it is free. For requests that have been checked."""
        if self.grammar is not None:
            return Constraint(kind="lark", source=self.grammar, param="grammar")
        if self.choice is not None:
            return _one_of(self.choice, "choice")
        if self.structured_outputs is not None and (found := _of_vllm(self.structured_outputs)) is not None:
            return found
        asked = self.format_asked
        return None if asked is None else of_format(*asked)

    @property
    def format_asked(self) -> tuple[ResponseFormat, str] | None:
        """The format that is asked for, and the field where it is."""
        if self.response_format is not None:
            return self.response_format, "response_format"
        given = self.structured_outputs
        if given is None:
            return None
        if given.json_ is not None:
            return _SchemaAlone(type="json", value=given.json_, field="json"), "structured_outputs"
        return (ResponseFormat(type="json_object"), "structured_outputs") if given.json_object else None


def _of_vllm(given: StructuredOutputs) -> Constraint | None:
    """What else than a schema `structured_outputs` asks for."""
    if given.regex is not None:
        return Constraint(kind="regex", source=given.regex, param="structured_outputs.regex")
    if given.choice is not None:
        return _one_of(given.choice, "structured_outputs.choice")
    if given.grammar is not None:
        return Constraint(kind="lark", source=given.grammar, param="structured_outputs.grammar")
    return None


def _one_of(texts: list[str], param: str) -> Constraint:
    alternatives = "|".join(escape(text) for text in dict.fromkeys(texts))
    return Constraint(kind="regex", source=f"({alternatives})", param=param)


def of_format(asked: ResponseFormat, root: str = "response_format") -> Constraint | None:
    """What a format in the field `root` holds an answer to, None if nothing. Raises `ApiError` 400."""
    match asked.type:
        case "text":
            return None
        case "regex":
            return Constraint(kind="regex", source=asked.value, param=f"{root}.value")
    if not asked.place:
        param = f"{root}.json_schema.schema" if asked.type == "json_schema" else root
        return Constraint(kind="json_schema", source=ANY_OBJECT, param=param, strict=asked.is_strict(None))
    param, found = _schema_of(asked, root)
    as_written = isinstance(asked.schema_given, str) and not found.place and asked.type != "json_object"
    source = asked.schema_given if as_written else schema_text(found.schema)
    return Constraint(kind="json_schema", source=source, param=param, strict=asked.is_strict(found.strict))


def _schema_of(asked: ResponseFormat, root: str) -> tuple[str, GivenSchema]:
    """The field that holds the schema, and the schema, for `json_object` that of an object. Raises `ApiError` 400."""
    param = ".".join((root, *asked.place))
    found = read_schema(asked.schema_given, param)
    param = ".".join((param, *found.place))
    if asked.type == "json_object":
        schema = of_object(found.schema, param, "as the type 'json_object' says")
        found = dataclasses.replace(found, schema=schema)
    return param, found


def restore_numbers(asked: tuple[ResponseFormat, str] | None, body: dict[str, Any]) -> None:
    """Let the schema of a format in the field of that path have the numbers of the body, which are exact."""
    if asked is None or not asked[0].place or not isinstance(schema := asked[0].schema_given, dict):
        return
    given = body
    for key in (*asked[1].split("."), *asked[0].place):
        given = given[key]
    schema.update(given)


def check_constraints(request: ConstraintFields) -> None:
    """Raise `ApiError` 400 for more than one constraint, and for schemas that are no JSON."""
    asked = request.response_format
    constrains = asked is not None and asked.type != "text"
    fields = ("grammar", "choice", "structured_outputs")
    given = [("response_format", constrains), *((name, getattr(request, name)) for name in fields)]
    names = [name for name, value in given if value]
    if len(names) > 1:
        raise bad_request(f"{names[0]} and {names[1]} both constrain the answer; give one of them", param=names[1])
    if request.grammar is not None:
        _check_grammar(request.grammar, "grammar")
    if request.structured_outputs is not None and request.structured_outputs.grammar is not None:
        _check_grammar(request.structured_outputs.grammar, "structured_outputs.grammar")
    check_format(request.format_asked)


def check_format(asked: tuple[ResponseFormat, str] | None) -> None:
    """Raise `ApiError` 400 for a schema that is no JSON, in a format in the field of that path."""
    if asked is not None and asked[0].place:
        param, found = _schema_of(*asked)
        check_json_value(found.schema, param, largest=MAX_SCHEMA_INTEGER)


def _check_grammar(grammar: str, param: str) -> None:
    """Look at the schemas that a grammar holds; what is wrong with them else, and what is no schema, shows later."""
    decoder = json_decoder(param=param)
    for found in _SCHEMA_IN_GRAMMAR.finditer(grammar):
        with suppress(ValueError, RecursionError):
            schema, _ = decoder.raw_decode(grammar, found.end())
            check_json_value(schema, param, largest=MAX_SCHEMA_INTEGER)
