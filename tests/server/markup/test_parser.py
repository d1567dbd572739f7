"""One parser for streamed and whole answers: however a text is cut, the same calls and the same content come out."""

import json
from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.markup.events import CallArguments, CallClosed, CallOpened, ContentText, Event
from server.markup.formats import DEEPSEEK, FORMATS, HERMES, LLAMA3, CallFormat
from server.markup.parser import CallParser, new_call_id
from tests.clocks import assert_linear

NAMES = ("get", "get_weather", "a.b-c")
FRAGMENTS = [
    "<tool_call>", "</tool_call>", '{"name": "', '{{"name": "', "get", "get_weather", "other", '", "arguments": ',
    '", "parameters": ', '{"x": "}\\"{"}', "{}", "}", "\n", " ", "```json\n", "```", "<", "text", "{", '"', "\\",
    "<|python_tag|>", *DEEPSEEK.marks, "function<｜tool▁sep｜>", "\n```json\n", "\n```",  # noqa: RUF001
    "<｜tool▁call▁end｜>", "é",  # noqa: RUF001
]  # fmt: skip

Calls = list[tuple[str, str, bool]]


def parse(form: CallFormat, pieces: list[str], **options: bool) -> list[Event]:
    ids = count()
    parser = CallParser(form, NAMES, new_id=lambda: f"id{next(ids)}", **options)
    events = [event for piece in pieces for event in parser.push(piece)]
    return events + parser.finish()


def summary(events: list[Event]) -> tuple[str, Calls]:
    """The content, and each call's name, arguments and whether it was closed. Checks the order of events."""
    content, calls = "", Calls()
    for event in events:
        match event:
            case ContentText(text):
                assert text
                content += text
            case CallOpened(index, call_id, name):
                assert index == len(calls) and call_id == f"id{index}" and all(closed for _, _, closed in calls)
                calls.append((name, "", False))
            case CallArguments(index, text):
                assert index == len(calls) - 1 and text and not calls[-1][2]
                calls[-1] = (calls[-1][0], calls[-1][1] + text, False)
            case CallClosed(index):
                calls[-1] = (*calls[-1][:2], True)
    return content, calls


def parse_whole(form: CallFormat, text: str, **options: bool) -> tuple[str, Calls]:
    return summary(parse(form, [text], **options))


texts = st.lists(st.sampled_from(FRAGMENTS), max_size=24).map("".join)
ALL = [*FORMATS.values(), HERMES.doubling()]


@settings(deadline=None)
@given(st.sampled_from(ALL), texts, st.data(), st.booleans(), st.booleans())
def test_any_chunking_gives_the_same(
    form: CallFormat, text: str, data: st.DataObject, at_start: bool, recover: bool
) -> None:
    whole = parse_whole(form, text, at_start=at_start, recover=recover)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert summary(parse(form, pieces, at_start=at_start, recover=recover)) == whole
    assert summary(parse(form, list(text), at_start=at_start, recover=recover)) == whole


json_objects = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=12),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


@settings(deadline=None)
@given(
    st.sampled_from(ALL),
    st.lists(st.tuples(st.sampled_from(NAMES), json_objects), min_size=1, max_size=3),
    st.booleans(),
)
def test_what_a_model_is_shown_is_what_is_parsed(form: CallFormat, calls: list[tuple[str, object]], pad: bool) -> None:
    arguments = [json.dumps(value, ensure_ascii=False, indent=1 if pad else None) for _, value in calls]
    text = "\n".join(form.write(name, text) for (name, _), text in zip(calls, arguments, strict=True))
    expected = [(name, text, True) for (name, _), text in zip(calls, arguments, strict=True)]
    assert summary(parse(form, list(text))) == ("", expected)


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
@pytest.mark.parametrize("text", ["", " \n", "plain  ", "  a < b ``` {", '{"name": "other", "arguments": {}}', "{}"])
def test_text_without_calls_is_content_to_the_last_blank(form: CallFormat, text: str) -> None:
    assert parse_whole(form, text) == (text, [])


def test_text_around_calls_is_content_without_the_white_space_at_its_ends() -> None:
    call = HERMES.write("get", "{}")
    called = ("get", "{}", True)
    assert parse_whole(HERMES, f"\n\n{call}\n") == ("", [called])
    assert parse_whole(HERMES, f"Let me see.\n{call}\n{call}\n\n") == ("Let me see.", [called, called])
    assert parse_whole(HERMES, f"One.\n{call}\nTwo. ") == ("One.\n\nTwo.", [called])
    assert parse_whole(HERMES, f"{call}\nDone.") == ("Done.", [called])


@pytest.mark.parametrize("opening", ["", "```json\n", "```\n", "Sure:\n```json\n"])
@pytest.mark.parametrize("key", ["arguments", "parameters"])
def test_json_of_a_declared_tool_is_a_call_without_its_tags(opening: str, key: str) -> None:
    text = f'{opening}{{"name": "get_weather", "{key}": {{"x": [1]}}}}'
    fenced = "```" in opening
    content, calls = parse_whole(HERMES, text + ("\n```" if fenced else ""))
    assert calls == [("get_weather", '{"x": [1]}', True)]
    assert content == ("Sure:" if opening.startswith("Sure") else "")


@pytest.mark.parametrize(
    "text",
    [
        '```json\n{"name": "nobody", "arguments": {}}\n```',
        '```json\n{"name": "get", "arguments": [1]}\n```',
        '```json\n{"name": "get"}\n```',
        '```python\n{"name": "get", "arguments": {}}\n```',
        'So: {"name": "get", "arguments": {}}',
        '     {"name": "get", "arguments": {}}',
        "<tool_call>\nnothing",
    ],
)
def test_other_json_stays_content(text: str) -> None:
    assert parse_whole(HERMES, text) == (text, [])


def test_without_recovery_only_markers_open_calls() -> None:
    bare = '{"name": "get", "arguments": {}}'
    assert parse_whole(HERMES, bare, recover=False) == (bare, [])
    assert parse_whole(HERMES, bare, at_start=False) == (bare, [])
    assert parse_whole(LLAMA3, "<|python_tag|>" + LLAMA3.write("get", "{}"), recover=False)[1] == [("get", "{}", True)]


def test_an_answer_cut_short() -> None:
    call = HERMES.write("get", '{"x": "yes"}')
    for end in range(len(call)):
        content, calls = parse_whole(HERMES, call[:end])
        opened = end > call.index('{"x"')
        assert [name for name, _, _ in calls] == ["get"] * opened
        assert not opened or '{"x": "yes"}'.startswith(calls[0][1])
        # Once the marker is there, what follows is no text that somebody should read.
        assert content == (call[:end] if end < len(HERMES.marker) else "")


def test_arguments_are_handed_on_as_they_come() -> None:
    parser = CallParser(HERMES, NAMES)
    events = parser.push('<tool_call>\n{"name": "get", "arguments": {"text": "abc')
    assert isinstance(events[0], CallOpened) and events[1:] == [CallArguments(0, '{"text": "abc')]
    assert parser.push("def") == [CallArguments(0, "def")]


def test_text_is_held_back_only_while_it_could_be_a_call() -> None:
    parser = CallParser(HERMES, NAMES)
    assert parser.push("a <") == [ContentText("a")]
    assert parser.push("b") == [ContentText(" <b")]
    assert parser.push(" ```") == []
    assert parser.push("py") == [ContentText(" ```py")]


@pytest.mark.parametrize(
    "unit",
    ["<", "`", "```json", "```json\n{", '```json\n{"name": "', "<tool_call>", "{", "[{", "\\", '"', " ", "<｜"],  # noqa: RUF001
)
@pytest.mark.parametrize("way", ["whole", "in pieces", "in an open call"])
def test_much_of_anything_takes_linear_time(unit: str, way: str) -> None:
    def work(size: int) -> Callable[[], object]:
        text = unit * (size // len(unit))
        if way == "whole":
            return lambda: [parse(form, [text]) for form in FORMATS.values()]
        opened = ['<tool_call>\n{"name": "get", "arguments": {'] if way == "in an open call" else []
        pieces = [*opened, *(text[start : start + 9] for start in range(0, len(text), 9))]
        return lambda: parse(HERMES, pieces)

    assert_linear(work, 31_250)


def test_ids_are_openais_form_and_new_each_time() -> None:
    ids = {new_call_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(one) == 29 and one.startswith("call_") and one[5:].isalnum() for one in ids)
