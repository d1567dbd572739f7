"""Reasoning is parted from the answer, however the text is cut."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.markup.reasoning import ReasoningParser, closes_reasoning, leaves_open, opens_reasoning
from tests.clocks import assert_linear


def split(pieces: list[str], *, is_open: bool) -> tuple[str, str]:
    parser = ReasoningParser(is_open=is_open)
    parts = [parser.push(piece) for piece in pieces] + [parser.finish()]
    return "".join(reasoning for reasoning, _ in parts), "".join(answer for _, answer in parts)


@pytest.mark.parametrize(
    ("text", "is_open", "expected"),
    [
        ("answer", False, ("", "answer")),
        ("\nhm\n</think>\n\nanswer", True, ("hm", "\n\nanswer")),
        ("hm", True, ("hm", "")),
        ("hm </thin", True, ("hm </thin", "")),
        ("</think>x", True, ("", "x")),
        ("<think>\nhm  so\n</think>x", False, ("hm  so", "x")),
        ("\n<think>hm</think>x</think>", False, ("hm", "x</think>")),
        ("<thin", False, ("", "<thin")),
        ("a <think>b</think>", False, ("", "a <think>b</think>")),
        ("  \n", False, ("", "  \n")),
        ("<think>", False, ("", "")),
        ("< /think></think>", True, ("< /think>", "")),
    ],
)
def test_splitting(text: str, is_open: bool, expected: tuple[str, str]) -> None:
    assert split([text], is_open=is_open) == expected
    assert split(list(text), is_open=is_open) == expected


fragments = st.sampled_from(["<think>", "</think>", "<", "</", "think>", " ", "\n", "a", "é", "</think"])


@settings(deadline=None)
@given(st.lists(fragments, max_size=14).map("".join), st.booleans(), st.data())
def test_any_chunking_gives_the_same(text: str, is_open: bool, data: st.DataObject) -> None:
    whole = split([text], is_open=is_open)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert split(pieces, is_open=is_open) == whole == split(list(text), is_open=is_open)


@pytest.mark.parametrize("unit", [" ", "<", "</thin", "a"])
@pytest.mark.parametrize("is_open", [True, False])
def test_a_long_answer_takes_linear_time(unit: str, is_open: bool) -> None:
    def work(size: int) -> Callable[[], object]:
        text = unit * (size // len(unit))
        pieces = [text[start : start + 3] for start in range(0, len(text), 3)]
        return lambda: split(pieces, is_open=is_open)

    assert_linear(work, 40_000)


def test_the_state_at_the_beginning_comes_from_the_prompt() -> None:
    assert opens_reasoning("<|user|>x<|assistant|><think>\n")
    assert not opens_reasoning("<|assistant|><think>\n</think>")
    assert closes_reasoning("<|assistant|><think>\n</think>\n\n") and not closes_reasoning("<|assistant|>")
    assert not opens_reasoning("<think> was said<|assistant|>")
    assert leaves_open("<think>so far")
    assert not leaves_open("<think>so far</think>The ans")
    assert not leaves_open("The ans")


def test_who_opened_the_reasoning() -> None:
    parser = ReasoningParser(is_open=False)
    parser.push("<think>x")
    assert parser.is_reasoning and parser.opened_itself and not parser.in_answer
    parser.push("</think>")
    assert parser.in_answer and not parser.is_reasoning
