"""The log-probabilities of a chat spell its content: to the byte, whatever was left out of the text, and why."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.answer.answer_text import AnswerText
from server.markup.events import ContentText
from server.markup.formats import HERMES
from server.markup.reading import CONTENT_ONLY, Reading
from server.prompt.tokenizer import ChatTokenizer
from tests.clocks import assert_linear
from tests.server.conftest import Load

CALL = HERMES.write("f", '{"a": "} STOP"}')
PARTS = [
    "One",
    " two",
    "STOP",
    " ST",
    "\n\n",
    "  ",
    "  🤗",
    " 日",
    "🤗",
    "日本",
    "naïve",
    "</think>",
    "<think>",
    CALL,
    "<tool_call>",
    "<",
]
READINGS = {
    "content": CONTENT_ONLY,
    "calls": Reading(calls=HERMES, tool_names=("f",)),
    "reasoning": Reading(reasoning="open"),
    "both": Reading(reasoning="open", calls=HERMES, tool_names=("f",)),
    "possible": Reading(reasoning="possible", calls=HERMES, tool_names=("f",)),
    "exact": Reading(reasoning="open", exact=True),
}


def scored(tokenizer: ChatTokenizer, ids: list[int], *, cut: bool = False, **options: Any) -> tuple[str, list[bytes]]:
    """The content of an answer, and the bytes of its entries."""
    answer = AnswerText(tokenizer, spells=True, **options)
    events = []
    for token_id in ids:
        data = tokenizer.token_bytes(token_id)
        entry = {"token": data.decode("utf-8", "replace"), "bytes": list(data), "logprob": -1.0, "top_logprobs": []}
        events += answer.push_scored(token_id, entry)
    events += answer.finish(cut=cut)
    content = "".join(event.text for event in events if isinstance(event, ContentText))
    assert all(entry["token"] == bytes(entry["bytes"]).decode("utf-8", "replace") for entry in answer.spelled)
    return content, [bytes(entry["bytes"]) for entry in answer.spelled]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(list(READINGS)),
    st.lists(st.sampled_from(PARTS), max_size=12).map("".join),
    st.sampled_from([(), ("STOP",), ("two ST", "🤗"), ("\n",)]),
    st.booleans(),
    st.booleans(),
)
def test_the_entries_spell_the_content(
    smollm2_tokenizer: ChatTokenizer, name: str, text: str, stop: tuple[str, ...], include_stop: bool, cut: bool
) -> None:
    ids = smollm2_tokenizer.encode(text, allow_special=True)
    content, pieces = scored(
        smollm2_tokenizer, [*ids, 2], cut=cut, reading=READINGS[name], stop=stop, include_stop=include_stop
    )
    assert b"".join(pieces).decode() == content


@pytest.mark.parametrize(
    "text", ["  🤗", "x  🤗", " 🤗 🤗", "STO 🤗", "<tool 🤗", "\n\n 🤗STOP", "<think> 🤗</think> 🤗x"]
)
@pytest.mark.parametrize("name", READINGS)
def test_a_space_in_the_token_that_begins_a_character_is_spelt(
    smollm2_tokenizer: ChatTokenizer, name: str, text: str
) -> None:
    ids = smollm2_tokenizer.encode(text, allow_special=True)
    for end in range(1, len(ids) + 1):
        for stop in ((), ("STOP",), (" 🤗",), ("🤗",), (" ",)):
            content, pieces = scored(smollm2_tokenizer, [*ids[:end], 2], reading=READINGS[name], stop=stop)
            assert b"".join(pieces).decode("utf-8", "replace") == content


@pytest.mark.parametrize("name", ["smollm2", "sentencepiece"])
def test_a_space_of_the_tokenizer_s_own_is_not_spelled(name: str, load_tokenizer: Load) -> None:
    tokenizer = load_tokenizer(name)
    ids = tokenizer.encode("The quick fox", allow_special=False)
    content, pieces = scored(tokenizer, ids)
    assert b"".join(pieces).decode() == content == "The quick fox"


def test_a_token_that_a_stop_string_cuts_through_has_what_is_left_of_it(smollm2_tokenizer: ChatTokenizer) -> None:
    ids = smollm2_tokenizer.encode("The capital of France is", allow_special=False)
    assert scored(smollm2_tokenizer, ids, stop=("France",)) == ("The capital of ", [b"The", b" capital", b" of", b" "])
    assert scored(smollm2_tokenizer, ids, stop=(" France",))[1] == [b"The", b" capital", b" of"]


def test_control_tokens_that_are_not_shown_have_no_entry(smollm2_tokenizer: ChatTokenizer) -> None:
    ids = smollm2_tokenizer.encode("a<|im_start|>b<|im_end|>", allow_special=True)
    assert scored(smollm2_tokenizer, ids) == ("ab", [b"a", b"b"])
    shown = scored(smollm2_tokenizer, ids, skip_special_tokens=False)
    assert shown == ("a<|im_start|>b<|im_end|>", [b"a", b"<|im_start|>", b"b", b"<|im_end|>"])


def test_bytes_that_are_no_text_keep_their_entries(smollm2_tokenizer: ChatTokenizer) -> None:
    """Of half a character at the end, as of all that shows as U+FFFD, the entry has the bytes as they came."""
    ids = smollm2_tokenizer.encode("🤗", allow_special=False)
    assert len(ids) > 1
    content, pieces = scored(smollm2_tokenizer, ids[:-1])
    assert content == "\ufffd" and b"".join(pieces) == "🤗".encode()[: len(b"".join(pieces))] != b""


@pytest.mark.parametrize("part", [" ", "a", "\n", "STO"])
def test_the_work_is_linear(part: str, smollm2_tokenizer: ChatTokenizer) -> None:
    (first, *_) = smollm2_tokenizer.encode(part, allow_special=False)

    def work(size: int) -> Any:
        ids = [first] * size
        return lambda: scored(smollm2_tokenizer, ids, reading=READINGS["calls"], stop=("STOP",))

    assert_linear(work, 2000)
