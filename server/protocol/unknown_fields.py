"""Fields that do not exist: how to send what they may have meant, or, for clients that cannot be changed, left out."""

import difflib
import json
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from server.protocol.errors import ApiError, field_path, from_validation_error, is_branch
from server.protocol.strict_model import StrictModel

M = TypeVar("M", bound=StrictModel)
Location = tuple[int | str, ...]

MAX_COMPARED_CHARS = 64
"""Longer names are nobody's slip of a finger, and would take long to compare."""
_SCHEMA = 'response_format {"type": "json_schema", "json_schema": {"schema": ...}}'
_REGEX = 'response_format {"type": "regex", "value": ...}'

_COMPLETIONS = frozenset({"prompt", "echo", "suffix", "add_special_tokens"})
"""What raw completions take and a conversation does not."""

ELSEWHERE = MappingProxyType(
    {
        "guided_json": _SCHEMA,
        "guided_regex": _REGEX,
        "guided_choice": "choice",
        "guided_grammar": "grammar",
        "json_schema": _SCHEMA,
        "format": _SCHEMA,
        "regex": _REGEX,
        "ebnf": "grammar",
        "enable_thinking": 'chat_template_kwargs {"enable_thinking": ...}',
        "thinking": "reasoning_effort or max_reasoning_tokens",
        "think": "reasoning_effort or max_reasoning_tokens",
        "reasoning": "reasoning_effort or max_reasoning_tokens",
        "include_reasoning": "reasoning_effort",
        "thinking_budget": "max_reasoning_tokens",
        "thinking_budget_tokens": "max_reasoning_tokens",
        "thinking_token_budget": "max_reasoning_tokens",
        "reasoning_budget": "max_reasoning_tokens",
        "num_predict": "max_tokens",
        "n_predict": "max_tokens",
        "max_new_tokens": "max_tokens",
        "max_output_tokens": "max_tokens",
        "repeat_penalty": "repetition_penalty",
        "stop_sequences": "stop",
        "system": "a message of role 'system'",
        "instructions": "a message of role 'system'",
        "input": "messages",
        "template_kwargs": "chat_template_kwargs",
        "min_new_tokens": "min_tokens",
        "top_a": "min_p, a threshold much like it",
        "typical_p": "top_p or min_p",
        "tfs_z": "top_p or min_p",
    }
)
"""What other servers call things, and how they are sent here."""


def parse_body(model: type[M], raw: bytes, *, ignore_unknown: bool = False) -> tuple[M, tuple[str, ...]]:
    """The request that a body holds, and JSON pointers of what was ignored of it.

    Raises `ApiError` 400 for what is wrong first, unless it is an unknown field that is to be ignored.
    """
    try:
        return model.model_validate_json(raw), ()
    except ValidationError as error:
        details = error.errors(include_url=False)
        unknown = [entry["loc"] for entry in details if entry["type"] == "extra_forbidden"]
        if not ignore_unknown or not unknown:
            raise (
                _refusal(model, unknown[0]) if details[0]["type"] == "extra_forbidden" else from_validation_error(error)
            ) from None
    body = json.loads(raw)
    paths = [tuple(part for part in location if not is_branch(part)) for location in unknown]
    for path in paths:
        _remove(body, path)
    try:
        request = model.model_validate_json(json.dumps(body))
    except ValidationError as error:
        raise from_validation_error(error) from None
    return request, tuple(_pointer(path) for path in paths)


def _remove(body: Any, path: Location) -> None:
    for part in path[:-1]:
        body = body[part]
    del body[path[-1]]


def _pointer(path: Location) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _refusal(model: type[StrictModel], location: Location) -> ApiError:
    """The refusal of an unknown field, with the way to send what it may have meant."""
    path = field_path(location)
    return ApiError(400, f"Unknown field: {path}{_hint(model, location)}", param=path, code="unknown_parameter")


def _hint(model: type[StrictModel], location: Location) -> str:
    name = str(location[-1])
    if len(name) > MAX_COMPARED_CHARS:
        return ""
    if name == "extra_body":
        return "; it is an argument of OpenAI's client, whose members are sent beside the other fields"
    beside = _known_fields(model, location[:-1])
    if len(location) == 1 and name in _COMPLETIONS:
        return f"; {name} is a field of /v1/completions, and a chat's prompt is its messages"
    if len(location) == 1 and name in ELSEWHERE:
        return f"; here it is {ELSEWHERE[name]}"
    if close := difflib.get_close_matches(name, beside, n=1, cutoff=0.75):
        return f"; did you mean {close[0]}?"
    if name in model.model_fields:
        return f"; {name} is a field of the request itself, beside messages"
    return "; this server takes the fields of its documentation, and ignores others only with --unknown-fields ignore"


def _known_fields(model: type[BaseModel], location: Location) -> list[str]:
    """The fields of whatever stands at a place of the request."""
    models = {model}
    for part in location:
        if isinstance(part, str) and not is_branch(part):
            fields = [field for known in models for field in _named(known, part)]
            models = {found for field in fields for found in _models_in(field)}
    return [field.alias or name for known in models for name, field in known.model_fields.items()]


def _named(model: type[BaseModel], name: str) -> list[Any]:
    return [field.annotation for key, field in model.model_fields.items() if name in (key, field.alias)]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a type speaks of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)
