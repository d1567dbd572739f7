"""Text in pieces adds up to text in one piece, whatever the pieces and the stop strings."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.messages import TokenLogprobs
from server.answer.answer_text import AnswerText
from server.answer.detokenizer import LOWEST_LOGPROB, Detokenizer, logprob_entries
from server.config.sampling_defaults import SamplingDefaults
from server.markup.events import ContentText, Event
from server.prompt.plan import plan_chat
from server.prompt.tokenizer import ChatTokenizer
from server.protocol.request import parse_chat_request
from tests.clocks import assert_linear, cpu_seconds
from tests.server.conftest import Load
from tests.server.prompt.test_plan import engine_info
from tests.server.texts import SHARED_TOKENIZERS, needs_shared

NAMES = ["smollm2", "sentencepiece", *(pytest.param(name, marks=needs_shared) for name in SHARED_TOKENIZERS)]
TEXT = "The quick brown fox, naïve 🤗👩‍👩‍👧 日本語 ﷽ 𐍈 \n\n\t <b> is 1234567; "


class StoppingText:
    """An answer that is content alone, as text."""

    def __init__(self, tokenizer: ChatTokenizer, **options: Any) -> None:
        self._answer = AnswerText(tokenizer, **options)

    @property
    def stopped(self) -> str | None:
        return self._answer.stopped

    def push(self, ids: list[int]) -> str:
        return self._text(self._answer.push(ids))

    def finish(self) -> str:
        return self._text(self._answer.finish())

    def _text(self, events: list[Event]) -> str:
        assert all(isinstance(event, ContentText) and event.text for event in events)
        return "".join(event.text for event in events if isinstance(event, ContentText))


def cut(text: str, stops: tuple[str, ...], include_stop: bool) -> tuple[str, str | None]:
    """The definition: up to the stop string that is complete first, of several the longest."""
    ends = [(text.index(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        return text, None
    end, _, stop = min(ends)
    return text[: end if include_stop else end - len(stop)], stop


def in_pieces(detokenizer: StoppingText, ids: list[int], sizes: list[int]) -> list[str]:
    pieces, position = [], 0
    for size in sizes:
        pieces.append(detokenizer.push(ids[position : position + size]))
        position += size
    return [*pieces, detokenizer.push(ids[position:]), detokenizer.finish()]


@st.composite
def cases(draw: st.DrawFn, tokenizer: ChatTokenizer) -> tuple[list[int], list[int], tuple[str, ...]]:
    """Ids (real text, random, single bytes), sizes of pieces, stop strings cut from the text or made up."""
    real = tokenizer.encode(draw(st.text(max_size=20)) + TEXT, allow_special=True)
    start = draw(st.integers(0, len(real)))
    random_ids = draw(st.lists(st.integers(0, tokenizer.vocab_size + 3) | st.integers(0, 300), max_size=20))
    ids = real[start:] + random_ids + real[: start // 2]
    text = tokenizer.decode(ids, draw(st.booleans()))
    stops = set(draw(st.lists(st.text("ab \n�", min_size=1, max_size=3), max_size=2)))
    for _ in range(draw(st.integers(0, 2)) if text else 0):
        first = draw(st.integers(0, len(text) - 1))
        stops.add(text[first : first + draw(st.integers(1, 12))])
    return ids, draw(st.lists(st.integers(0, 5), max_size=60)), tuple(sorted(stops))


@pytest.mark.parametrize("name", NAMES)
def test_any_pieces_add_up_to_the_whole(name: str, load_tokenizer: Load) -> None:
    tokenizer = load_tokenizer(name)

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=cases(tokenizer), include_stop=st.booleans(), skip=st.booleans())
    def check(case: tuple[list[int], list[int], tuple[str, ...]], include_stop: bool, skip: bool) -> None:
        ids, sizes, stops = case
        detokenizer = StoppingText(tokenizer, stop=stops, include_stop=include_stop, skip_special_tokens=skip)
        expected, stopped = cut(tokenizer.decode(ids, skip), stops, include_stop)
        assert "".join(in_pieces(detokenizer, ids, sizes)) == expected
        assert detokenizer.stopped == stopped

    check()


@settings(max_examples=500, deadline=None)
@given(
    text=st.text("ab", max_size=40),
    stops=st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=4),
    include_stop=st.booleans(),
)
def test_stop_strings_of_two_letters(
    text: str, stops: list[str], include_stop: bool, smollm2_tokenizer: ChatTokenizer
) -> None:
    """A small alphabet makes stop strings that overlap themselves and one another."""
    letters = {letter: smollm2_tokenizer.encode(letter, allow_special=False) for letter in "ab"}
    detokenizer = StoppingText(smollm2_tokenizer, stop=stops, include_stop=include_stop)
    pieces, known = [], ""
    for letter in text:
        pieces.append(detokenizer.push(letters[letter]))
        known += letter
        if detokenizer.stopped is None:
            # No more is held back than what could yet become a stop string.
            heads = [known[i:] for i in range(len(known)) if any(stop.startswith(known[i:]) for stop in stops)]
            assert len(known) - len("".join(pieces)) == max(map(len, heads), default=0)
    pieces.append(detokenizer.finish())
    assert ("".join(pieces), detokenizer.stopped) == cut(text, tuple(stops), include_stop)


@pytest.mark.parametrize("name", NAMES)
def test_no_half_characters(name: str, load_tokenizer: Load) -> None:
    tokenizer = load_tokenizer(name)
    text = "a🤗b👩‍👩‍👧é日" if name != "sentencepiece" else "ab 🤗é日 a"
    ids = tokenizer.encode(text, allow_special=True)
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push([token_id]) for token_id in ids]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == text
    assert detokenizer.finish() == ""


@pytest.mark.parametrize("name", NAMES)
def test_the_text_is_that_of_the_tokenizers_library(name: str, load_tokenizer: Load) -> None:
    """Random ids too where the vocabulary is byte-level; runs of bad fallback bytes are where we do better."""
    tokenizer = load_tokenizer(name)
    theirs = tokenizer._tokenizer
    byte_level = tokenizer._token_text._byte_level

    @settings(max_examples=150, deadline=None)
    @given(ids=st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12), skip=st.booleans())
    def check(ids: list[int], skip: bool) -> None:
        if not byte_level:
            ids = [i for i in ids if not theirs.id_to_token(i).startswith("<0x")]
        assert tokenizer.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)

    check()


def test_a_character_cut_short_shows_at_the_end(smollm2_tokenizer: ChatTokenizer) -> None:
    ids = smollm2_tokenizer.encode("a🤗", allow_special=False)
    detokenizer = Detokenizer(smollm2_tokenizer)
    assert detokenizer.push(ids[:-1]) == "a"
    assert detokenizer.finish() == "\ufffd"


def test_spaces_at_the_start(load_tokenizer: Load) -> None:
    tokenizer = load_tokenizer("sentencepiece")
    ids = tokenizer.encode("ab", allow_special=True)
    assert tokenizer.token_text(ids[0]).startswith(" ")
    assert Detokenizer(tokenizer).push(ids) == "ab"
    assert Detokenizer(tokenizer, prompt_tail_ids=[5]).push(ids) == " ab", "a continued text keeps its space"
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push([1]), detokenizer.push(ids), detokenizer.push(ids)] == ["", "ab", " ab"]


def test_hidden_and_special_tokens(smollm2_tokenizer: ChatTokenizer) -> None:
    ids = [*smollm2_tokenizer.encode("abc", allow_special=False), 2]
    assert Detokenizer(smollm2_tokenizer).push(ids) == "abc"
    assert Detokenizer(smollm2_tokenizer, skip_special_tokens=False).push(ids) == "abc<|im_end|>"
    hidden = Detokenizer(smollm2_tokenizer, skip_special_tokens=False, hidden_ids=frozenset({2}))
    assert hidden.push(ids) == "abc"
    assert Detokenizer(smollm2_tokenizer, shown_ids=frozenset({2})).push([*ids, 1]) == "abc<|im_end|>"


def test_nothing_follows_a_stop_string(smollm2_tokenizer: ChatTokenizer) -> None:
    encode: Callable[[str], list[int]] = lambda text: smollm2_tokenizer.encode(text, allow_special=False)  # noqa: E731
    detokenizer = StoppingText(smollm2_tokenizer, stop=["STOP"])
    assert detokenizer.push(encode("one ST")) == "one "
    assert detokenizer.push(encode("OP two")) == ""
    assert detokenizer.stopped == "STOP"
    assert detokenizer.push(encode("STOP three")) == ""
    assert detokenizer.finish() == ""
    unfinished = StoppingText(smollm2_tokenizer, stop=["STOP"])
    assert unfinished.push(encode("one ST")) == "one "
    assert unfinished.finish() == "ST"
    assert unfinished.stopped is None


@pytest.mark.parametrize("stops", [(), ("a" * 1023 + "b", "ab" * 512, "\n\nUser:", "###")])
def test_it_is_cheap_and_linear(stops: tuple[str, ...], smollm2_tokenizer: ChatTokenizer) -> None:
    """A token costs some microseconds, a few times what the tokenizer takes to look it up."""

    def work(size: int) -> Callable[[], object]:
        ids = smollm2_tokenizer.encode("aaaa abab a quick brown fox\n" * size, allow_special=False)

        def push_all() -> None:
            detokenizer = StoppingText(smollm2_tokenizer, stop=stops)
            for token_id in ids:
                detokenizer.push([token_id])

        return push_all

    assert_linear(work, 200)
    ids = smollm2_tokenizer.encode("aaaa abab a quick brown fox\n" * 200, allow_special=False)
    looked_up = cpu_seconds(lambda: [smollm2_tokenizer._tokenizer.decode([token_id]) for token_id in ids])
    assert cpu_seconds(work(200)) < 60 * looked_up


def test_garbage_stays_linear(smollm2_tokenizer: ChatTokenizer) -> None:
    """Bytes that never make a character are shown as they come, not hoarded."""
    lone = next(i for i in range(smollm2_tokenizer.vocab_size) if smollm2_tokenizer.token_bytes(i) == b"\x80")

    def work(size: int) -> Callable[[], str]:
        def push_all() -> str:
            detokenizer = Detokenizer(smollm2_tokenizer)
            return "".join(detokenizer.push([lone]) for _ in range(size))

        return push_all

    assert work(10_000)() == "\ufffd" * 10_000
    assert_linear(work, 2_500)


def test_logprob_entries(smollm2_tokenizer: ChatTokenizer) -> None:
    ids = smollm2_tokenizer.encode("🤗", allow_special=False)
    values = [TokenLogprobs(-0.25, [ids[0], 2], [-0.25, -math.inf]) for _ in ids]
    entries: list[dict[str, Any]] = logprob_entries(smollm2_tokenizer, ids, values)
    assert b"".join(bytes(entry["bytes"]) for entry in entries) == "🤗".encode()
    assert entries[0]["token"] == "\ufffd" and entries[0]["logprob"] == -0.25
    assert entries[0]["top_logprobs"][1] == {
        "token": "<|im_end|>",
        "logprob": LOWEST_LOGPROB,
        "bytes": list(b"<|im_end|>"),
    }
    [entry] = logprob_entries(smollm2_tokenizer, [2], [TokenLogprobs(math.nan, [], [])])
    assert entry["logprob"] == LOWEST_LOGPROB and entry["top_logprobs"] == []


def test_each_answer_of_a_plan_is_read_as_the_plan_says(smollm2_tokenizer: ChatTokenizer) -> None:
    fields = {"stop": " two", "skip_special_tokens": False, "include_stop_str_in_output": True}
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    request = parse_chat_request(json.dumps(body).encode())
    plan = plan_chat(request, smollm2_tokenizer, engine_info(), SamplingDefaults())
    answer = AnswerText.of_plan(plan, smollm2_tokenizer)
    assert answer.push(smollm2_tokenizer.encode("one two three", allow_special=False)) == [ContentText("one two")]
    assert AnswerText.of_plan(plan, smollm2_tokenizer).stopped is None, "each answer has its own"
