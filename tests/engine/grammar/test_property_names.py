"""`propertyNames` says anything that a schema of strings says: by reference, in choices, by several patterns."""

from typing import Any

import pytest

from engine.errors import RequestError
from engine.grammar.schema.prepare import prepare_schema
from tests.engine.grammar.test_schema import accepts, matcher_of

UUID = (
    "^([0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[1-8][0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}"
    "|00000000-0000-0000-0000-000000000000)$"
)
EMAIL = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
DATE = (
    r"^\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    r"|02-(?:0[1-9]|1\d|2[0-8]))$"
)
ONE_UUID = "8f14e45f-ceea-467a-9d5c-3f2b6f1c0a77"
DEFINITIONS = {
    "color": {"enum": ["red", "blue"], "type": "string", "title": "Color"},
    "text": {"type": "string"},
    "word": {"type": "string", "pattern": "^[a-z]+$"},
    "either": {"anyOf": [{"$ref": "#/$defs/color"}, {"const": "q"}]},
}
CASES: dict[str, tuple[Any, list[str], list[str]]] = {
    "a reference to listed names": ({"$ref": "#/$defs/color"}, ["red", "blue"], ["green", "re", ""]),
    "a reference to any text": ({"$ref": "#/$defs/text"}, ["", "any thing"], []),
    "a reference to a pattern": ({"$ref": "#/$defs/word"}, ["abc"], ["a1", ""]),
    "a reference beside a pattern": ({"$ref": "#/$defs/either", "pattern": "^[rq]"}, ["red", "q"], ["blue", "r"]),
    "literals": ({"anyOf": [{"const": "a"}, {"type": "string", "const": "b"}]}, ["a", "b"], ["c", "ab"]),
    "literals of which one holds": ({"oneOf": [{"const": "a"}, {"enum": ["b", "c"]}]}, ["a", "b", "c"], ["d"]),
    "references in choices": (
        {"anyOf": [{"$ref": "#/$defs/color"}, {"pattern": "^x-"}]}, ["red", "x-1"], ["x", "green"]),
    "patterns": ({"anyOf": [{"pattern": "^a+$"}, {"pattern": "^[0-9]{2}$"}]}, ["aaa", "12"], ["a1", "123", ""]),
    "patterns of which one holds": (
        {"oneOf": [{"pattern": "^[ab]+$"}, {"pattern": "^[bc]+$"}]}, ["ab", "cb"], ["b", "bb", "ac"]),
    "format and pattern of ids": ({"type": "string", "format": "uuid", "pattern": UUID}, [ONE_UUID],
                                  [ONE_UUID.replace("-467a-", "-967a-"), "x"]),
    "format and pattern of dates": ({"type": "string", "format": "date", "pattern": DATE}, ["2023-02-28"],
                                    ["2023-02-29", "2024-02-29", "2023-04-31"]),
    "format and pattern of addresses": ({"type": "string", "format": "email", "pattern": EMAIL}, ["a.b@example.org"],
                                        ["a..b@example.org", ".a@example.org", "a@b", "a"]),
    "formats": ({"anyOf": [{"format": "date"}, {"format": "uuid"}]}, ["2023-02-28", ONE_UUID], ["2023-02-30", "x"]),
    "a format and a length": ({"format": "hostname", "maxLength": 253}, ["a.example", "a" * 63],
                              ["-a", ".".join(["a" * 62] * 5)]),
    "a long length": ({"minLength": 2, "maxLength": 300, "pattern": "^[a-z]"}, ["ab", "a" * 300],
                      ["a", "a" * 301, "Ab"]),
    "others than some": ({"not": {"enum": ["a"]}, "pattern": "^[a-c]$"}, ["b", "c"], ["a", "d", "bc"]),
    "a condition": ({"if": {"pattern": "^a"}, "then": {"maxLength": 2}}, ["ab", "xyz"], ["abc"]),
    "several at once": ({"allOf": [{"pattern": "^a"}, {"pattern": "b$"}, {"minLength": 3}]}, ["acb"], ["ab", "abc"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("closes", [False, True])
def test_names_of_any_kind(case: str, closes: bool) -> None:
    names, good, bad = CASES[case]
    schema = {"type": "object", "propertyNames": names, "additionalProperties": {"type": "integer"}}
    grammar = matcher_of(prepare_schema({**schema, "$defs": DEFINITIONS}, param="x", closes=closes))
    assert [name for name in good if not accepts(grammar, {name: 1})] == []
    assert [name for name in bad if accepts(grammar, {name: 1})] == []


def test_names_that_refer_to_themselves_are_refused() -> None:
    again = {"anyOf": [{"$ref": "#/$defs/again"}, {"const": "q"}]}
    with pytest.raises(RequestError, match=r"/anyOf/0/\$ref"):
        prepare_schema({"propertyNames": {"$ref": "#/$defs/again"}, "$defs": {"again": again}}, param="x")
