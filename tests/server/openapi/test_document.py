"""The description of the API is complete, and its examples are ones that the server takes and gives."""

import json
import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from server.app import ROUTES
from server.openapi.details import DETAILS
from server.openapi.document import RANGE, STATUS, describe_api
from server.protocol.completion_request import parse_completion_request
from server.protocol.error_table import ERROR_TABLE
from server.protocol.fields import field_table
from server.protocol.generation_request import MAX_N
from server.protocol.request import parse_chat_request
from server.protocol.tokenize_request import read_detokenize_request, read_tokenize_request

PARSERS: dict[str, Any] = {
    "/v1/chat/completions": parse_chat_request,
    "/v1/completions": parse_completion_request,
    "/tokenize": read_tokenize_request,
    "/detokenize": read_detokenize_request,
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return describe_api(ROUTES, version="1", needs_key=True)


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


def test_every_route_is_described_and_nothing_else(document: dict[str, Any]) -> None:
    assert set(document["paths"]) == set(DETAILS)
    described = {(path, method.upper()) for path, item in document["paths"].items() for method in item}
    served = {(route.path.replace(":path}", "}"), method) for route in ROUTES for method in route.methods or ()}
    assert described == served
    ids = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(ids) == len(set(ids))


def test_every_error_stands_with_its_status(document: dict[str, Any]) -> None:
    """Except 405, which is the answer to operations that do not exist."""
    found: set[tuple[int, str]] = set()
    for item in document["paths"].values():
        for operation in item.values():
            for status, response in operation["responses"].items():
                schema = response["content"].get("application/json", {}).get("schema", {})
                for part in schema.get("allOf", ()):
                    codes = part.get("properties", {}).get("error", {}).get("properties", {}).get("code", {})
                    found |= {(int(status), code) for code in codes.get("enum", ())}
    assert found == {(row.status, code) for row in ERROR_TABLE for code in row.codes if row.status != 405}


def test_keys_are_asked_for_where_the_server_asks(document: dict[str, Any]) -> None:
    for path, item in document["paths"].items():
        for operation in item.values():
            assert (
                ("security" in operation)
                == (path not in ("/health", "/livez", "/readyz"))
                == ("401" in operation["responses"])
            )
    without = describe_api(ROUTES, version="1", needs_key=False)
    assert "securitySchemes" not in without["components"] and "invalid_api_key" not in json.dumps(without)


@pytest.mark.parametrize("path", PARSERS)
def test_examples_are_taken_and_given(path: str, document: dict[str, Any]) -> None:
    operation = document["paths"][path]["post"]
    media = operation["requestBody"]["content"]["application/json"]
    assert media["examples"]
    for example in media["examples"].values():
        validator(document, media["schema"]).validate(example["value"])
        PARSERS[path](json.dumps(example["value"]).encode())
    for response in operation["responses"].values():
        for content in response["content"].values():
            if isinstance(content.get("example"), dict):
                validator(document, content["schema"]).validate(content["example"])


def test_a_field_tells_its_range_and_what_becomes_of_it_in_keys_of_their_own(document: dict[str, Any]) -> None:
    properties = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    for row in field_table():
        found = properties[row.name]
        assert (found[RANGE], found[STATUS], found.get("default")) == (row.range, row.status, row.default)
    assert {"type": "integer", "minimum": 1, "maximum": MAX_N} in properties["n"]["anyOf"]
    assert not re.search(r'"(ge|le|gt|lt)":', json.dumps(document)), "JSON Schema has other words for bounds"


def test_descriptions_are_for_readers_of_the_api(document: dict[str, Any]) -> None:
    """No docstring of the source has got in: every field's description is that of the table."""
    for details in DETAILS.values():
        for row in details.fields:
            name = details.request[0].__name__
            field = document["components"]["schemas"][name]["properties"][row.name]
            assert field["description"].startswith(row.meaning)
    fields = {row.name for details in DETAILS.values() for row in details.fields}
    for schema in document["components"]["schemas"].values():
        assert "description" not in schema and "title" not in schema
        for name, field in schema.get("properties", {}).items():
            assert name in fields or "description" not in field, name
    assert not re.search(r"Shape|pydantic|server\.|`_", json.dumps(document))
