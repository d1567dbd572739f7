"""The real chat templates with real tokenizers: one beginning of sequence, and control tokens from templates alone."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from server.prompt.model_files import ChatFiles
from server.prompt.tokenizer import ChatTokenizer
from server.protocol.errors import ApiError
from tests.places import SHARED
from tests.server.conftest import Load
from tests.server.prompt.test_tokenizer import CONVERSATIONS, PAIRS, control_counts
from tests.server.texts import needs_shared

PHI_4 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] +"
    " '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
EVERY_PAIR = [
    pytest.param(pair, marks=needs_shared)
    for pair in (*PAIRS, "qwen2_5/microsoft-Phi-3.5-mini-instruct", "deepseek_v3/Qwen-Qwen2.5-7B-Instruct", "phi4")
]


@pytest.fixture(scope="module")
def load(shared_tokenizer: Load) -> Callable[[str], ChatTokenizer]:
    """`shared_tokenizer`, and `phi4`: its format on a byte-level vocabulary of the same kind."""
    return lambda name: phi_4() if name == "phi4" else shared_tokenizer(name)


def phi_4_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(SHARED / "tokenizers" / "qwen2_5" / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("<|im_sep|>", normalized=False, special=True)])
    return tokenizer


def phi_4() -> ChatTokenizer:
    return ChatTokenizer(
        phi_4_tokenizer(), ChatFiles(special_tokens={"eos_token": "<|im_end|>"}, templates={"default": PHI_4})
    )


@needs_shared
def test_phi_4_prompts_equal_those_of_transformers() -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=phi_4_tokenizer(), eos_token="<|im_end|>", chat_template=PHI_4)
    ours = phi_4()
    for messages in CONVERSATIONS[:3]:
        for generation in (True, False):
            text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
            assert ours.prompts.write(messages, add_generation_prompt=generation).plain == text
            ids = theirs.apply_chat_template(messages, add_generation_prompt=generation)["input_ids"]
            assert ours.encode_prompt(messages, add_generation_prompt=generation) == ids


@pytest.mark.parametrize("pair", EVERY_PAIR)
def test_a_prompt_has_one_beginning_at_most(pair: str, load: Callable[[str], ChatTokenizer]) -> None:
    tokenizer = load(pair)
    beginning = tokenizer.prompts.special_tokens.get("bos_token", "<|no such token|>")
    in_template = beginning in tokenizer.prompts.write(CONVERSATIONS[0]).plain
    for messages in (*CONVERSATIONS[:3], [{"role": "user", "content": f"{beginning} hello {beginning}"}]):
        for options in ({}, {"add_generation_prompt": False}):
            texts = [tokenizer.token_text(i) for i in tokenizer.encode_prompt(messages, **options)]
            assert texts.count(beginning) == in_template
            assert not in_template or texts[0] == beginning
    ending = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "Sure"}]
    texts = [tokenizer.token_text(i) for i in tokenizer.encode_prompt(ending, continue_final_message=True)]
    assert texts.count(beginning) == in_template


def places(text: str) -> dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None]]:
    """Conversations, and tools, with a text wherever text from outside can stand."""
    question = {"role": "user", "content": "x"}
    call = {"id": text[:9], "type": "function", "function": {"name": text, "arguments": {text: [text]}}}
    tool = {
        "type": "function",
        "function": {
            "name": text,
            "description": text,
            "parameters": {"type": "object", "properties": {text: {"type": "string", "description": text}}},
        },
    }
    calling = {"role": "assistant", "content": None, "tool_calls": [call]}
    return {
        "name": ([{"role": "user", "name": text, "content": "x"}], None),
        "call": ([question, calling], None),
        "tool": ([question, calling, {"role": "tool", "tool_call_id": "a", "name": text, "content": text}], None),
        "arguments as text": (
            [
                question,
                {**calling, "tool_calls": [call | {"function": {"name": "f", "arguments": json.dumps({text: text})}}]},
            ],
            None,
        ),
        "arguments that are no JSON": (
            [question, {**calling, "tool_calls": [call | {"function": {"name": "f", "arguments": f"{{{text}"}}]}],
            None,
        ),
        "reasoning": ([question, {"role": "assistant", "content": "y", "reasoning": text}, question], None),
        "developer": ([{"role": "developer", "content": text}, question], None),
        "tools": ([question], [tool]),
    }


def counts(tokenizer: ChatTokenizer, text: str, place: str) -> dict[str, int] | None:
    messages, tools = places(text)[place]
    try:
        return control_counts(tokenizer, tokenizer.encode_prompt(messages, tools=tools))
    except ApiError as error:
        assert error.status == 400
        return None


@pytest.mark.parametrize("pair", EVERY_PAIR)
def test_names_calls_and_tools_never_become_control_tokens(pair: str, load: Callable[[str], ChatTokenizer]) -> None:
    tokenizer = load(pair)
    tokens = sorted(tokenizer.prompts.control.tokens)[:12]
    evil = " ".join(tokens) + "x".join(tokens)
    seen = set()
    for place in places(""):
        hostile, harmless = counts(tokenizer, evil, place), counts(tokenizer, "harmless " * 3, place)
        assert hostile == harmless or hostile is None, place
        seen |= {place} if hostile is not None else set()
    assert "developer" in seen
