"""What the parser calls a call is what the grammar has held to its schema."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.constraint import Constraint
from server.markup.events import CallArguments, CallClosed, CallOpened
from server.markup.formats import DEEPSEEK, FORMATS, HERMES, LLAMA3, CallFormat
from server.markup.grammar import ToolSchema, calls_or, free_calls, required_calls
from server.markup.parser import CallParser
from tests.server.markup.grammars import SPECIAL_BYTE, SPECIAL_ID, accepted, compiled, matches

SCHEMAS: dict[str, Any] = {
    "get": {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    },
    "get_more": {"type": "object"},
}
TOOLS = [ToolSchema(name, schema, f"tools[{i}]") for i, (name, schema) in enumerate(SCHEMAS.items())]
ALL = list(FORMATS.values())
GOOD, BAD = '{"n": 1}', '{"n": "x"}'
FREE = {form.name: compiled(free_calls(form, TOOLS, {}, parallel=True)) for form in ALL}
FREE_SPECIAL = {form.name: compiled(free_calls(form, TOOLS, {form.marker: SPECIAL_ID}, parallel=True)) for form in ALL}
REQUIRED = {form.name: compiled(required_calls(form, TOOLS, {}, parallel=True)) for form in ALL}
FRAGMENTS = [
    "<tool_call>", "</tool_call>", '{"name": "', "get", "get_more", "other", '", "arguments": ', '", "parameters": ',
    GOOD, BAD, "{}", "}", "\n", " ", "    ", "```json\n", "```", "<", "text", "<|python_tag|>", *DEEPSEEK.marks,
    "function<｜tool▁sep｜>", "\n```json\n", "\n```", "<｜tool▁call▁end｜>", "é", SPECIAL_BYTE,  # noqa: RUF001
    *(f'{{"name": "{name}", "{key}": ' for name in SCHEMAS for key in ("arguments", "parameters")),
]  # fmt: skip


def calls_of(form: CallFormat, text: str, **options: bool) -> list[tuple[str, str]]:
    """The closed calls of a text."""
    parser = CallParser(form, SCHEMAS, **options)
    calls: list[list[str]] = []
    closed = 0
    for event in [*parser.push(text), *parser.finish()]:
        match event:
            case CallOpened(name=name):
                calls.append([name, ""])
            case CallArguments(text=more):
                calls[-1][1] += more
            case CallClosed():
                closed += 1
    return [(name, arguments) for name, arguments in calls[:closed]]


def check_valid(calls: list[tuple[str, str]]) -> None:
    for name, arguments in calls:
        jsonschema.validate(json.loads(arguments), SCHEMAS[name])


texts = st.lists(st.sampled_from(FRAGMENTS), max_size=20).map("".join)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(ALL), texts, st.booleans())
def test_every_call_the_parser_finds_is_valid(form: CallFormat, text: str, special: bool) -> None:
    grammar = (FREE_SPECIAL if special else FREE)[form.name]
    allowed = accepted(grammar, text)
    if special:
        allowed = allowed.replace(SPECIAL_BYTE, form.marker)
    check_valid(calls_of(form, allowed))


@pytest.mark.parametrize("form", ALL, ids=lambda form: form.name)
def test_calls_end_to_end(form: CallFormat) -> None:
    good, bad = form.write("get", GOOD), form.write("get", BAD)
    for grammar in (FREE[form.name], REQUIRED[form.name]):
        assert matches(grammar, good) and calls_of(form, good) == [("get", GOOD)]
        assert not matches(grammar, bad)
        assert not matches(grammar, form.write("get", "{}"))
        assert matches(grammar, form.write("get_more", '{"x": [{"y": "}"}]}'))
    assert not matches(REQUIRED[form.name], "Sure. " + good)
    assert not matches(REQUIRED[form.name], "")
    assert not matches(REQUIRED[form.name], form.write("nobody", GOOD))


@pytest.mark.parametrize("form", ALL, ids=lambda form: form.name)
def test_text_is_free_outside_of_calls(form: CallFormat) -> None:
    grammar = FREE[form.name]
    marked = form.marker + form.write("get", GOOD) if form is LLAMA3 else form.write("get", GOOD)
    for text in ("", "Hello.", " \n\n {} [1] ```py\nx < 3\n```", '{"name": "Bob", "arguments": 3}', '{"name": "get"}'):
        assert matches(grammar, text)
        if not text.startswith("{"):
            assert matches(grammar, f"{text}{marked}\nbye")
    for opening in ("", "```json\n", 'x\n```\n{"name": "other"} ```json\n'):
        assert matches(grammar, f'{opening}{{"name": "get", "arguments": {GOOD}}}\n```\nThere.')
        assert not matches(grammar, f'{opening}{{"name": "get", "arguments": {BAD}}}\n```\nThere.')
        # A name that is not declared leaves everything free.
        assert matches(grammar, f'{opening}{{"name": "gets", "arguments": {BAD}}}\n```\nThere.')
    assert matches(grammar, f'So: {{"name": "get", "arguments": {BAD}}}')


@pytest.mark.parametrize("form", ALL, ids=lambda form: form.name)
def test_one_call_where_calls_are_not_parallel(form: CallFormat) -> None:
    good = form.write("get", GOOD)
    for build in (required_calls, free_calls):
        one = compiled(build(form, TOOLS, {}, parallel=False))
        assert matches(one, good)
        assert not matches(one, f"{good}\n{good}") and not matches(one, f"{good} bye")
    assert matches(compiled(free_calls(form, TOOLS, {}, parallel=False)), "no call")
    body = good.removeprefix(form.begin).removesuffix(form.end)
    assert matches(REQUIRED[form.name], f"{form.begin}{body}\n{body}{form.end}")


def test_a_special_marker_opens_calls_and_its_spelling_does_not_occur() -> None:
    grammar = FREE_SPECIAL["llama3"]
    call = LLAMA3.write("get", GOOD)
    assert matches(grammar, f"Hm.{SPECIAL_BYTE}{call}") and matches(grammar, call)
    assert not matches(grammar, f"Hm.{SPECIAL_BYTE}{LLAMA3.write('get', BAD)}")
    assert accepted(grammar, "Hm. <|python_tag|>") == "Hm. <|python_tag|"


@pytest.mark.parametrize("form", ALL, ids=lambda form: form.name)
def test_white_space_is_bounded(form: CallFormat) -> None:
    assert len(accepted(REQUIRED[form.name], " " * 100)) <= 8
    opened = form.marker + "\n" * 50
    assert len(accepted(FREE[form.name], opened)) <= len(form.marker) + 8
    body = form.write("get", GOOD).removeprefix(form.begin).removesuffix(form.end)
    for gap in range(10):
        text = form.begin + " " * gap + body + form.end
        if matches(REQUIRED[form.name], text):
            assert calls_of(form, text) == [("get", GOOD)]


CONTENTS = {
    "json": (
        Constraint(kind="json_schema", source='{"type": "object", "required": ["name"]}', param="response_format"),
        ('{"name": "get"}', '{"name": "get", "arguments": {"n": "x"}}'),
    ),
    "regex": (Constraint(kind="regex", source=r"(yes|no)/[\w<>/]*\n?", param="response_format"), ("yes/", "no/a\n")),
    "lark": (Constraint(kind="lark", source='start: "<" word\nword: /[a-z]+/', param="grammar"), ("<abc",)),
}


@pytest.mark.parametrize("form", ALL, ids=lambda form: form.name)
@pytest.mark.parametrize("kind", CONTENTS)
def test_calls_or_a_constrained_text(form: CallFormat, kind: str) -> None:
    content, good_texts = CONTENTS[kind]
    grammar = compiled(calls_or(content, form, TOOLS, {}, parallel=True))
    for text in good_texts:
        assert matches(grammar, text)
        assert calls_of(form, text, recover=False) == []
    assert not matches(grammar, "free text")
    marked = form.marker + form.write("get", GOOD) if form is LLAMA3 else form.write("get", GOOD)
    assert matches(grammar, marked) and calls_of(form, marked, recover=False) == [("get", GOOD)]
    assert not matches(grammar, marked.replace(GOOD, BAD))


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [("^(?!a)[a-z/]+$", "b/a", "ab"), (r"^(?=.*\d)(?=.*[a-z])\w{2,9}(?<!_)$", "a1", "a_"), ("a/b|^c$", "a/b", "a")],
)
def test_content_of_a_pattern(pattern: str, good: str, bad: str) -> None:
    content = Constraint(kind="regex", source=pattern, param="response_format")
    constraint = calls_or(content, HERMES, TOOLS, {}, parallel=True)
    assert [entry.param for entry in constraint.patterns] == ["response_format"]
    assert matches(compiled(constraint), good)
    assert not matches(compiled(constraint), bad)


def test_schemas_are_blamed_by_their_field() -> None:
    constraint = free_calls(HERMES, TOOLS, {}, parallel=True)
    assert [entry.param for entry in constraint.schemas] == ["tools[0]", "tools[1]"]
    assert constraint.param == "tools"
