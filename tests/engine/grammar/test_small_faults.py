"""Small things that schemas of the wild hold: Draft 3, references to nothing, expressions that are none, long names."""

import pytest

from engine.errors import RequestError
from engine.grammar.schema.prepare import prepare_schema
from tests.engine.grammar.test_grammar import compiled
from tests.engine.grammar.test_schema import accepts, matcher_of


def test_a_member_that_says_itself_that_it_is_required() -> None:
    members = {"a": {"type": "integer", "required": True}, "b": {"type": "integer", "required": False}}
    grammar = matcher_of(prepare_schema({"type": "object", "properties": members, "required": ["b"]}, param="x"))
    assert accepts(grammar, {"a": 1, "b": 2})
    assert not accepts(grammar, {"b": 2}) and not accepts(grammar, {"a": 1})


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ({"$ref": "#"}, "/$ref"),
        ({"properties": {"a": {"$ref": "#/properties/a"}}, "required": ["a"]}, "/properties/a/$ref"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "/$ref"),
    ],
)
def test_a_reference_to_nothing_but_references(schema: dict[str, object], pointer: str) -> None:
    with pytest.raises(RequestError) as refused:
        prepare_schema(schema, param="x")
    assert f"{pointer}: '$ref' leads to itself" in refused.value.message


@pytest.mark.parametrize(
    ("expression", "why"), [(r"(a)\1", "backreferences"), ("(a", "unclosed group"), ("[z-a]", "range")]
)
def test_an_expression_is_refused_in_a_few_words(expression: str, why: str) -> None:
    with pytest.raises(RequestError, match=why) as refused:
        compiled("regex", expression, param="response_format.value")
    message = refused.value.message
    assert message.startswith("response_format.value: invalid regex: ") and "start" not in message.replace(
        "the start", ""
    )


@pytest.mark.parametrize("size", [253, 254])
def test_a_host_s_name_has_at_most_253_characters(size: int) -> None:
    name = ".".join(["a" * 49] * 5 + ["b" * (size - 250)])
    grammar = matcher_of(prepare_schema({"type": "string", "format": "hostname"}, param="x"))
    assert accepts(grammar, name) is (size <= 253)
