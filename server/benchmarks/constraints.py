"""The constraints that `headrace bench structured` measures, each with a text that follows it."""

import json
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Case:
    """One constraint."""

    name: str
    kind: Literal["json_schema", "regex"]
    source: str
    text: str
    """An answer."""


def _schema(name: str, schema: dict[str, Any], answer: Any) -> Case:
    return Case(name, "json_schema", json.dumps(schema), json.dumps(answer, ensure_ascii=False))


_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 60},
        "born": {"type": "string", "format": "date"},
        "height_cm": {"type": "integer", "minimum": 40, "maximum": 260},
        "languages": {"type": "array", "items": {"enum": ["de", "en", "es", "fr", "pt", "ja"]}, "maxItems": 4},
    },
    "required": ["name", "born", "height_cm", "languages"],
    "additionalProperties": False,
}
_ADA = {"name": "Ines Carvalho", "born": "1987-05-03", "height_cm": 171, "languages": ["pt", "en"]}
_TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "label": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["label", "children"],
        }
    },
    "$ref": "#/$defs/node",
}
_LEAVES = [{"label": f"leaf {number}", "children": []} for number in range(3)]
_EVENT = {
    "oneOf": [
        {
            "type": "object",
            "properties": {"kind": {"const": "meal"}, "dish": {"type": "string"}, "guests": {"type": "integer"}},
            "required": ["kind", "dish", "guests"],
        },
        {
            "type": "object",
            "properties": {"kind": {"const": "trip"}, "to": {"type": "string"}, "km": {"type": "number", "minimum": 0}},
            "required": ["kind", "to", "km"],
        },
    ]
}
_NAMES = [
    f"{one}_{two}" for one in ("customer", "delivery", "invoice") for two in ("name", "street", "city", "country")
]
RECORD = {
    "type": "object",
    "properties": {name: {"type": "string", "maxLength": 3} for name in _NAMES},
    "required": _NAMES,
}
"""Whose many names are fixed, so that most of its tokens are forced."""

CASES = (
    _schema("person", _PERSON, _ADA),
    _schema("tree, recursive", _TREE, {"label": "root", "children": [*_LEAVES, {"label": "b", "children": _LEAVES}]}),
    _schema("one of two", _EVENT, {"kind": "trip", "to": "the weir above the mill", "km": 3.5}),
    _schema("record of twelve", RECORD, {name: "abc" for name in _NAMES}),
    _schema("any object", {"type": "object"}, {"river": "Alz", "length": 63, "towns": ["Trostberg", "Burghausen"]}),
    Case("expression: a date and time", "regex", r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z", "2024-02-29T23:59:59Z"),
    Case(
        "expression: 1 to 40 words", "regex", r"[a-z]{1,12}( [a-z]{1,12}){0,39}\.", "the miller has his height there."
    ),
)

LOADS: dict[str, dict[str, Any] | None] = {
    "free": None,
    "strings": {"type": "array", "items": {"type": "string", "minLength": 200}, "minItems": 50},
    "record": {"type": "array", "items": RECORD, "minItems": 50},
}
"""What answers of a load are held to: nothing; long strings whose text is up to the model; fixed names."""
