"""Members that only a condition asks for may come, in the order in which the condition speaks of them."""

from typing import Any

import pytest

from engine.errors import RequestError
from engine.grammar.schema.prepare import prepare_schema
from tests.engine.grammar.test_schema import accepts, matcher_of

LISTED = {"properties": {"z": {"type": "integer"}}}
BOTH, ONE, OTHER, NONE = {"a": 1, "b": 2}, {"a": 1}, {"b": 2}, {}
IF_A = {"if": {"required": ["a"]}}
CONDITIONS: dict[str, dict[str, Any]] = {
    "dependentRequired": {"dependentRequired": {"a": ["b"]}},
    "dependentSchemas": {"dependentSchemas": {"a": {"required": ["b"]}}},
    "dependentSchemas with a type": {"dependentSchemas": {"a": {"required": ["b"], "properties": {"b": {"const": 2}}}}},
    "dependencies": {"dependencies": {"a": ["b"]}},
    "dependencies by a schema": {"dependencies": {"a": {"required": ["b"]}}},
    "dependencies by a name": {"dependencies": {"a": "b"}},
    "if and then": {**IF_A, "then": {"required": ["b"]}},
    "if and then with a value": {
        "if": {"required": ["a"], "properties": {"a": {"const": 1}}}, "then": {"required": ["b"]}},
    "then with a type": {**IF_A, "then": {"required": ["b"], "properties": {"b": {"type": "integer"}}}},
    "in a part": {"allOf": [{**IF_A, "then": {"required": ["b"]}}]},
}  # fmt: skip


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("listed", [{}, LISTED, {"properties": {"a": {}}}])
@pytest.mark.parametrize("closes", [False, True])
def test_members_that_a_condition_asks_for(condition: str, listed: dict[str, Any], closes: bool) -> None:
    schema = {"type": "object", **listed, **CONDITIONS[condition]}
    grammar = matcher_of(prepare_schema(schema, param="x", closes=closes))
    first = {"z": 1} if listed == LISTED else {}
    assert accepts(grammar, {**first, **NONE}) and accepts(grammar, {**first, **BOTH})
    assert not accepts(grammar, {**first, **ONE})
    assert listed or accepts(grammar, OTHER)


@pytest.mark.parametrize("choices", ["anyOf", "oneOf"])
def test_members_that_choices_ask_for(choices: str) -> None:
    asked = {"type": "object", **LISTED, choices: [{"required": ["a"]}, {"required": ["b"]}]}
    grammar = matcher_of(prepare_schema(asked, param="x"))
    assert all(accepts(grammar, {"z": 1, **members}) for members in (ONE, OTHER))
    assert accepts(grammar, {"z": 1, **BOTH}) is (choices == "anyOf")


@pytest.mark.parametrize("closes", ["anyOf", "oneOf", "then"])
def test_members_that_a_choice_lists_are_its_own(closes: str) -> None:
    own = [{"properties": {name: {"type": "integer"}}, "required": [name]} for name in "ab"]
    said = {**IF_A, "then": own[1]} if closes == "then" else {closes: own}
    grammar = matcher_of(prepare_schema({"type": "object", **LISTED, **said}, param="x"))
    assert not accepts(grammar, {"z": 1, "b": "x"}) and not accepts(grammar, {"z": 1, "q": 1})


@pytest.mark.parametrize("wrong", [{"if": {"properties": 5}, "then": {}}, {"allOf": [{"required": 3}]}, {"anyOf": [7]}])
def test_what_is_no_schema_is_said_to_be_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="must"):
        prepare_schema({**LISTED, **wrong}, param="x")
