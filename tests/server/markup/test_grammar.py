"""What the parser calls a call is what the grammar has held to its schema."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.constraint import Constraint
from engine.grammar.language.writing import in_slashes
from server.markup.events import CallArguments, CallClosed, CallOpened
from server.markup.formats import DEEPSEEK, FORMATS, HERMES, LLAMA3, CallFormat
from server.markup.grammar import ToolSchema, calls_or, free_calls, required_calls
from server.markup.parser import CallParser
from tests.server.markup.grammars import SPECIAL_BYTE, SPECIAL_ID, accepted, allows, compiled, matches

SCHEMAS: dict[str, Any] = {
    "get": {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    },
    "get_more": {"type": "object"},
}
TOOLS = [ToolSchema(name, json.dumps(schema), f"tools[{i}]") for i, (name, schema) in enumerate(SCHEMAS.items())]
DOUBLED = HERMES.doubling()
ALL = [*FORMATS.values(), DOUBLED]
GOOD, BAD = '{"n": 1}', '{"n": "x"}'
FREE = {form: compiled(free_calls(form, TOOLS, {}, parallel=True)) for form in ALL}
FREE_SPECIAL = {form: compiled(free_calls(form, TOOLS, {form.marker: SPECIAL_ID}, parallel=True)) for form in ALL}
REQUIRED = {form: compiled(required_calls(form, TOOLS, {}, parallel=True)) for form in ALL}
FRAGMENTS = [
    '{{"name": "', "}}",
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
    grammar = (FREE_SPECIAL if special else FREE)[form]
    allowed = accepted(grammar, text)
    if special:
        allowed = allowed.replace(SPECIAL_BYTE, form.marker)
    check_valid(calls_of(form, allowed))


@pytest.mark.parametrize("form", ALL, ids=lambda form: form.name)
def test_calls_end_to_end(form: CallFormat) -> None:
    good, bad = form.write("get", GOOD), form.write("get", BAD)
    for grammar in (FREE[form], REQUIRED[form]):
        assert matches(grammar, good) and calls_of(form, good) == [("get", GOOD)]
        assert not matches(grammar, bad)
        assert not matches(grammar, form.write("get", "{}"))
        assert matches(grammar, form.write("get_more", '{"x": [{"y": "}"}]}'))
    assert not matches(REQUIRED[form], "Sure. " + good)
    assert not matches(REQUIRED[form], "")
    assert not matches(REQUIRED[form], form.write("nobody", GOOD))


@pytest.mark.parametrize("form", ALL, ids=lambda form: form.name)
def test_text_is_free_outside_of_calls(form: CallFormat) -> None:
    grammar = FREE[form]
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
    assert matches(REQUIRED[form], f"{form.begin}{body}\n{body}{form.end}")


def test_a_special_marker_opens_calls_and_its_spelling_does_not_occur() -> None:
    grammar = FREE_SPECIAL[LLAMA3]
    call = LLAMA3.write("get", GOOD)
    assert matches(grammar, f"Hm.{SPECIAL_BYTE}{call}") and matches(grammar, call)
    assert not matches(grammar, f"Hm.{SPECIAL_BYTE}{LLAMA3.write('get', BAD)}")
    assert accepted(grammar, "Hm. <|python_tag|>") == "Hm. <|python_tag|"


@pytest.mark.parametrize("form", ALL, ids=lambda form: form.name)
def test_white_space_is_bounded(form: CallFormat) -> None:
    assert len(accepted(REQUIRED[form], " " * 100)) <= 8
    opened = form.marker + "\n" * 50
    assert len(accepted(FREE[form], opened)) <= len(form.marker) + 8
    body = form.write("get", GOOD).removeprefix(form.begin).removesuffix(form.end)
    for gap in range(10):
        text = form.begin + " " * gap + body + form.end
        if matches(REQUIRED[form], text):
            assert calls_of(form, text) == [("get", GOOD)]


CONTENTS = {
    "json": (
        Constraint(kind="json_schema", source='{"required": ["name"], "additionalProperties": true}'),
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


@pytest.mark.parametrize("form", ALL, ids=lambda form: form.name)
@pytest.mark.parametrize("grammars", [FREE, REQUIRED], ids=["free", "required"])
def test_arguments_of_any_names_have_none_twice(grammars: dict[str, Any], form: CallFormat) -> None:
    """Whatever quotes and braces stand in free text before."""
    grammar = grammars[form]
    begun = form.write("get_more", '{"a": 1, "').partition('{"a": 1, "')
    before = f'As "{{"a": 1, "a": 2 shows {form.marker if form is LLAMA3 else ""}' if grammars is FREE else ""
    text = before + begun[0] + begun[1]
    assert accepted(grammar, text) == text
    assert allows(grammar, text, "a") and allows(grammar, f"{text}b", '"')
    assert not allows(grammar, f"{text}a", '"')


def test_a_regular_expression_keeps_its_meaning_between_slashes() -> None:
    for pattern in ("a/b", r"a\/b", "[/]x", "a\nb", "\\\nc", r"\\/d", r'"\{'):
        written = compiled(Constraint(kind="lark", source=f"start: {in_slashes(pattern)}"))
        text = {"a/b": "a/b", r"a\/b": "a/b", "[/]x": "/x", "a\nb": "a\nb", "\\\nc": "\nc", r"\\/d": "\\/d"}
        assert matches(written, text.get(pattern, '"{'))


def test_schemas_are_blamed_by_their_field() -> None:
    constraint = free_calls(HERMES, TOOLS, {}, parallel=True)
    assert [entry.param for entry in constraint.schemas] == ["tools[0]", "tools[1]"]
    assert constraint.param == "tools"


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{{"name": "get", "arguments": {"n": 1}}}\n</tool_call>',
        '<tool_call>\n{"name": "get", "arguments": {"n": 1}}\n</tool_call>',
        '{{"name": "get", "arguments": {"n": 1}}}',
        '{"name": "get", "arguments": {"n": 1}}',
        '```json\n{{"name": "get", "arguments": {"n": 1}}}\n```',
    ],
)
def test_braces_that_a_template_doubles_may_be_doubled(text: str) -> None:
    assert calls_of(DOUBLED, text) == [("get", GOOD)]
    assert matches(FREE[DOUBLED], text)
    wrong = text.replace(GOOD, BAD)
    assert not matches(FREE[DOUBLED], wrong) and len(accepted(FREE[DOUBLED], wrong)) < len(wrong) - 3
    assert matches(REQUIRED[DOUBLED], text) == text.startswith("<tool_call>")
    assert bool(calls_of(HERMES, text)) == ("{{" not in text), "elsewhere they are text"
