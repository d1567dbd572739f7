"""Rows 41, 42, 44 and 45 of the project's table of bad inputs: constraints. The others are in `tests.hazards`."""

import json
from typing import Any

from tests import hazards
from tests.hazards import MIB, Try, answered, body_of, refused


def regex(value: Any, **fields: Any) -> Try:
    """A try that is refused, or followed, within its budget."""
    body = body_of({"response_format": {"type": "regex", "value": value}, **fields})
    return Try(body, status=(200, 400), param="response_format.value")


def schema(value: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json", "value": value}}


def tool(parameters: Any) -> dict[str, Any]:
    function = {"name": "f", "parameters": parameters}
    return {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}


DEEP = '{"items":' * 50_000 + "{}" + "}" * 50_000
MANY = {f"p{number}": {"type": "integer"} for number in range(9_000)}
FAN = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(60)}
TANGLE = {f"d{n}": {"oneOf": [{"items": {"$ref": f"#/$defs/d{n + 1}"}}, {"minItems": n}]} for n in range(60)}
FIELD = "response_format.value"
CONSTRAINTS = (FIELD, "grammar", "tools[0].function.parameters")
"""Fields that are only refused once they are compiled, beside the engine."""

ROWS: dict[int, tuple[str, list[Try]]] = {
    **hazards.ROWS,
    41: (
        "explosive expressions",
        [
            *(regex(value) for value in ("(a+)+b", ".{0,65535}", "(.*a){30}", "(a|b)*a(a|b){18}", "(?:x?){500}x{500}")),
            refused(FIELD, response_format={"type": "regex", "value": "(a{1000}){1000}"}),
            refused(FIELD, response_format={"type": "regex", "value": "((a{99}){99}){99}"}),
            Try(body_of(schema({"type": "string", "pattern": "((a{99}){99}){99}"})), status=(200, 400), param=FIELD),
            Try(body_of(schema({"not": {"pattern": "(a|b)*a(a|b){18}"}})), param=FIELD),
        ],
    ),
    42: (
        "constraints that mean nothing",
        [
            *(refused(FIELD, response_format={"type": "regex", "value": one}) for one in ("(", "[", "a{2,1}", "(?=a)")),
            *(refused(FIELD, **schema(value)) for value in (
                {"type": "text"}, {"type": 5}, {"properties": []}, {"pattern": "("}, {"minLength": -1}, {"enum": 3},
                {"$ref": 3}, {"$ref": "#/nowhere"}, {"anyOf": []}, {"not": {}}, {"type": "string", "enum": [1]},
            )),
            refused("tools[0].function.parameters", **tool({"type": "object", "properties": {"a": {"pattern": "("}}})),
            refused("tools[0].function.parameters", **tool({"type": "object", "properties": {"a": {"type": "?"}}})),
            refused("grammar", grammar="start: missing"),
            refused("grammar", grammar="%%%"),
            refused("response_format.type", response_format={"type": "yaml"}),
            refused("choice", choice=[]),
        ],
    ),
    44: (
        "ever new schemas",
        [
            answered(lambda answer: json.loads(hazards.text_of(answer)) == 1, max_tokens=9,
                     **schema({"const": 1, "description": str(number)}))
            for number in range(300)
        ],
    ),
    45: (
        "schemas without measure",
        [
            Try(body_of(schema({"type": "object", "properties": MANY})), status=(200, 400), param=FIELD),
            Try(body_of(schema({"enum": ["x" * 99 + str(n) for n in range(9000)]})), status=(200, 400), param=FIELD),
            Try(body_of(schema({"type": "string", "pattern": "a" * MIB})), status=(200, 400), param=FIELD),
            refused(FIELD, **schema(DEEP)),
            *(refused(FIELD, **schema({"$ref": url})) for url in ("http://127.0.0.1:9/x", "file:///etc/x", "x.json")),
            Try(body_of(schema({"$ref": "#/$defs/d0", "$defs": {**FAN, "d60": {"type": "null"}}})), status=(200, 400),
                param=FIELD),
            Try(body_of(schema({"not": {"$ref": "#/$defs/d0"}, "$defs": {**TANGLE, "d60": {"type": "null"}}})),
                status=(200, 400), param=FIELD),
            *(refused(FIELD, **schema(value)) for value in ({"$ref": "#"}, {"not": {"$ref": "#"}})),
        ],
    ),
}  # fmt: skip
