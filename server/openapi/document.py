"""The description of the API that GET /openapi.json answers, in OpenAPI 3.2.

FastAPI cannot write it: routes read raw bodies, answers are encoded by hand, and what the edge refuses is no part of
any route. So it is put together here, from the models of requests (`protocol.request`), of answers
(`protocol.shapes`) and the table of errors (`protocol.error_table`). `DETAILS` has an entry for each route.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.edge.limits import Limits
from server.images.service import RequestLimits
from server.openapi.details import DETAILS, Details, Json
from server.protocol.error_table import ERROR_TABLE, error_codes
from server.protocol.fields import FieldRow
from server.protocol.shapes import ErrorAnswerShape

OPENAPI_VERSION = "3.2.0"
RANGE, STATUS = "x-range", "x-status"
"""What a field may hold and what becomes of it, in the words of docs/api.md."""
LIMITS = "x-limits"
"""What a request and its images may be at most, so that a client can judge before it sends."""
_KEYWORDS: Mapping[str, str] = {"ge": "minimum", "le": "maximum"}
"""pydantic's words for bounds of types that it does not know as numbers, in those of JSON Schema."""
EVERYWHERE = (400, 401, 403, 414, 431, 500)
"""Statuses with which the edge may answer any request; 401 where keys are asked for."""


def describe_api(
    routes: Iterable[APIRoute],
    *,
    version: str,
    needs_key: bool,
    limits: Limits = Limits(),  # noqa: B008 - it is frozen
    images: RequestLimits = RequestLimits(),  # noqa: B008
) -> Json:
    """The whole document. Raises `KeyError` for a route that has no entry in `DETAILS`."""
    paths: dict[str, Json] = {}
    for route in routes:
        path = route.path.replace(":path}", "}")
        for method in sorted(route.methods or ()):
            paths.setdefault(path, {})[method.lower()] = _operation(route, DETAILS[path], needs_key)
    document: Json = {
        "openapi": OPENAPI_VERSION,
        "info": {
            "title": "Headrace",
            "version": version,
            "description": "Chat completions as OpenAI and Hugging Face define them. What a request asks for is done, "
            "or it is refused with an error that names the field.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": _schemas()},
        LIMITS: {
            "request_bytes": limits.max_body_bytes,
            "images": images.max_images,
            "image_bytes": images.max_bytes,
            "image_pixels": images.max_pixels,
            "image_side": images.max_side,
        },
    }
    if needs_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return document


def _operation(route: APIRoute, details: Details, needs_key: bool) -> Json:
    operation: Json = {
        "operationId": route.name,
        "summary": route.summary,
        "description": details.description,
        "responses": {"200": _answer(details)},
    }
    secured = needs_key and not details.is_open
    for status in sorted({*EVERYWHERE, *details.errors} - ({401} if not secured else set())):
        operation["responses"][str(status)] = _error(status, has_body=bool(details.request))
    if details.unhealthy is not None:
        operation["responses"]["503"] = _content("Not now", _reference(details.unhealthy))
    if details.parameters:
        operation["parameters"] = list(details.parameters)
    if details.request:
        media: Json = {"schema": _one_of(details.request)}
        media["examples"] = {name: {"value": body} for name, body in details.request_examples.items()}
        operation["requestBody"] = {"required": details.needs_body, "content": {"application/json": media}}
    if secured:
        operation["security"] = [{"key": []}]
    return operation


def _one_of(models: tuple[type[BaseModel], ...]) -> Json:
    references = [_reference(model) for model in models]
    return references[0] if len(references) == 1 else {"oneOf": references}


def _answer(details: Details) -> Json:
    if isinstance(details.answer, str):
        schema = {"type": "object"} if details.answer == "application/json" else {"type": "string"}
        return _content("What was asked for", schema, media_type=details.answer)
    response = _content("What was asked for", _reference(details.answer), example=details.answer_example)
    if details.answer_headers:
        response["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in details.answer_headers.items()
        }
    if details.event is not None:
        data = {"contentMediaType": "application/json", "contentSchema": _reference(details.event)}
        response["content"]["text/event-stream"] = {
            "itemSchema": {
                "type": "object",
                "required": ["data"],
                "properties": {
                    "data": {
                        "description": "A JSON object; [DONE] in the last event; an error in the last but one of a "
                        "stream that failed",
                        "type": "string",
                        "anyOf": [data, {"contentSchema": _reference(ErrorAnswerShape)}, {"const": "[DONE]"}],
                    }
                },
            },
            "example": details.event_example,
        }
    return response


def _error(status: int, *, has_body: bool) -> Json:
    """The answer with an error of this status, its codes named; those about fields come to bodies only."""
    codes = error_codes(status)
    if status == 400 and not has_body:
        codes = ["bad_http"]
    reasons = [row.when.replace("](security.md#limits)", "]") for row in ERROR_TABLE if {*row.codes} & {*codes}]
    schema = {
        "allOf": [
            _reference(ErrorAnswerShape),
            {"properties": {"error": {"properties": {"code": {"enum": codes}}}}},
        ]
    }
    response = _content("; ".join(reasons).replace("[", "").replace("]", ""), schema)
    if status in (429, 503):
        response["headers"] = {
            "Retry-After": {"description": "Seconds, where waiting helps", "schema": {"type": "string"}}
        }
    return response


def _content(description: str, schema: Json, *, media_type: str = "application/json", example: Any = None) -> Json:
    media: Json = {"schema": schema}
    if example is not None:
        media["example"] = example
    return {"description": description, "content": {media_type: media}}


def _reference(model: type[BaseModel]) -> Json:
    return {"$ref": f"#/components/schemas/{_public_name(model.__name__)}"}


def _public_name(name: str) -> str:
    return name.removesuffix("Shape")


def _schemas() -> Json:
    """Schemas of all models that the routes use, without the notes that their source holds for its readers."""
    models: dict[type[BaseModel], tuple[FieldRow, ...]] = {ErrorAnswerShape: ()}
    for details in DETAILS.values():
        for model in (details.answer, details.event, details.unhealthy):
            if isinstance(model, type):
                models[model] = ()
        models |= {model: details.fields if model is details.request[0] else () for model in details.request}
    _, found = models_json_schema([(model, "validation") for model in models])
    schemas = {_public_name(name): _without_notes(schema) for name, schema in found["$defs"].items()}
    for model, rows in models.items():
        for row in rows:
            field = schemas[_public_name(model.__name__)]["properties"][row.name]
            field |= {"description": f"{row.meaning}. Range: {row.range}", RANGE: row.range, STATUS: row.status}
            if row.default is not None:
                field["default"] = row.default
    return schemas


def _without_notes(value: Any, *, holds_names: bool = False) -> Any:
    """A schema without its titles and descriptions, which are docstrings, and with our names in its references.

    `holds_names` says that the keys of `value` are names of properties.
    """
    if isinstance(value, list):
        return [_without_notes(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept: Json = {}
    for key, child in value.items():
        if key == "$ref":
            kept[key] = f"#/components/schemas/{_public_name(child.rpartition('/')[2])}"
        elif holds_names or key not in ("title", "description"):
            kept[key if holds_names else _KEYWORDS.get(str(key), str(key))] = _without_notes(
                child, holds_names=key == "properties" and not holds_names
            )
    return kept
