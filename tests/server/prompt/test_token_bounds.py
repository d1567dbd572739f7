"""The fewest tokens of a text: never more than it has, and near enough to spare the work on huge prompts."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.config.sampling_defaults import SamplingDefaults
from server.prompt.conversation import check_shown
from server.prompt.plan import plan_chat
from server.prompt.plan_completion import plan_completion
from server.prompt.tokenizer import ChatTokenizer
from server.protocol.completion_request import parse_completion_request
from server.protocol.errors import ApiError
from server.protocol.request import parse_chat_request
from tests.clocks import assert_linear
from tests.server.conftest import Load
from tests.server.prompt.test_plan import engine_info
from tests.server.texts import SHARED_TOKENIZERS, needs_shared

NAMES = ["smollm2", "sentencepiece", *(pytest.param(name, marks=needs_shared) for name in SHARED_TOKENIZERS)]
pieces = st.sampled_from(
    [" " * 300, "\n" * 90, "=" * 200, "x" * 100, "the quick brown fox ", "\0\x01\x02", "e\u0301", "ﬁ①", "日本語", "🤗",
     "\u1112\u1161\u11ab", "<|im_end|>", "<s>", "<|reserved_special_token_5|>", "\t \t ", "İ", "\ufeff"]
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_no_text_has_fewer_tokens_than_is_said(name: str, load_tokenizer: Load) -> None:
    tokenizer = load_tokenizer(name)

    @settings(max_examples=150, deadline=None)
    @given(st.lists(pieces | st.text(max_size=10), max_size=30).map("".join))
    def holds(text: str) -> None:
        for special in (True, False):
            assert tokenizer.bounds.fewest(text) <= len(tokenizer.encode(text, allow_special=special))

    holds()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_no_idle_bound(name: str, load_tokenizer: Load) -> None:
    tokenizer = load_tokenizer(name)
    for text in ("The quick brown fox jumps over the lazy dog. " * 200, "ab cd " * 500):
        assert tokenizer.bounds.fewest(text) >= len(tokenizer.encode(text, allow_special=False)) / 40 > 0


def refusal(run: Callable[[], object]) -> str:
    with pytest.raises(ApiError) as caught:
        run()
    assert caught.value.code == "context_length_exceeded" and caught.value.param in ("messages", "prompt")
    return caught.value.message


def test_huge_prompts_are_refused_without_being_tokenised(
    smollm2_tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2_tokenizer, "_encode_all", lambda texts: pytest.fail("it was tokenised"))
    monkeypatch.setattr(smollm2_tokenizer, "encode_raw", lambda *given, **options: pytest.fail("it was tokenised"))
    info = engine_info(context=8192, num_blocks=1000)
    smollm2_tokenizer.bounds.fewest("x")  # reads the vocabulary

    def chat(size: int) -> Callable[[], object]:
        text = "Once upon a time there was a prompt. " * size
        request = parse_chat_request(json.dumps({"messages": [{"role": "user", "content": text}]}).encode())
        return lambda: refusal(lambda: plan_chat(request, smollm2_tokenizer, info, SamplingDefaults()))

    def raw(size: int) -> Callable[[], object]:
        text = "Once upon a time there was a prompt. " * size
        request = parse_completion_request(json.dumps({"prompt": text}).encode())
        return lambda: refusal(lambda: plan_completion(request, smollm2_tokenizer, info, SamplingDefaults()))

    assert "context is 8192 tokens and messages has at least" in str(chat(100_000)())
    assert "prompt has at least" in str(raw(100_000)())
    for work in (chat, raw):
        assert_linear(work, 12_500)


def test_what_may_fit_is_tokenised_and_counted(smollm2_tokenizer: ChatTokenizer) -> None:
    text = "word " * 300
    chat = parse_chat_request(json.dumps({"messages": [{"role": "user", "content": text}]}).encode())
    message = refusal(lambda: plan_chat(chat, smollm2_tokenizer, engine_info(context=100), SamplingDefaults()))
    assert "messages has 3" in message
    assert plan_chat(chat, smollm2_tokenizer, engine_info(context=1000), SamplingDefaults()).prompt_token_ids


def test_huge_conversations_are_refused_without_being_rendered(
    smollm2_tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2_tokenizer.prompts, "write", lambda *given, **more: pytest.fail("it was rendered"))
    messages = [{"role": "user", "content": [{"type": "text", "text": f"part {part} "}]} for part in range(50_000)]
    assert "messages" in refusal(lambda: smollm2_tokenizer.encode_prompt(messages, context=100))


def test_looking_for_what_a_template_shows_is_linear() -> None:
    def work(size: int) -> Callable[[], None]:
        messages = [{"role": "user", "content": [{"type": "text", "text": f"part {part}"}]} for part in range(size)]
        rendered = "\n".join(f"<|user|>part {part}" for part in range(size))
        return lambda: check_shown(messages, rendered)

    assert_linear(work, 4000)
