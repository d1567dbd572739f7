"""What a model makes no use of is taken, and said: names, switches of reasoning, efforts."""

import json
from typing import Any

import pytest

from server.prompt.model_files import ChatFiles
from server.prompt.tokenizer import ChatTokenizer
from server.prompt.unused import unused_fields
from server.protocol.errors import ApiError
from server.protocol.request import parse_chat_request
from tests.server.texts import tiny_sentencepiece

SHOWS_USERS = (
    "{% for m in messages %}{{ m.role }}{% if m.role == 'user' %} {{ m.name }}{% endif %}: {{ m.content }}\n"
    "{% endfor %}"
)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
SWITCHES = PLAIN + "{% if enable_thinking %}<think>{% endif %}{{ reasoning_effort }}"
NAMED = [
    {"role": "system", "name": "rules", "content": "a"},
    {"role": "user", "name": "Ann", "content": "b"},
    {"role": "assistant", "name": "Bot", "tool_calls": [{"id": "c", "function": {"name": "f"}}]},
    {"role": "tool", "name": "f", "tool_call_id": "c", "content": "d"},
]


def tokenizer(template: str) -> ChatTokenizer:
    return ChatTokenizer(tiny_sentencepiece(), ChatFiles(special_tokens={}, templates={"default": template}))


def unused(template: str, **fields: Any) -> tuple[str, ...]:
    request = parse_chat_request(json.dumps({"messages": [{"role": "user", "content": "x"}], **fields}).encode())
    return unused_fields(request, tokenizer(template), tools=False)


def test_names_that_no_template_shows() -> None:
    """But for that of a tool's turn, which repeats which call is answered."""
    assert unused(PLAIN, messages=NAMED) == ("/messages/0/name", "/messages/1/name", "/messages/2/name")
    assert unused(SHOWS_USERS, messages=NAMED) == ("/messages/0/name", "/messages/2/name")
    assert "user Ann: b" in tokenizer(SHOWS_USERS).prompts.write(NAMED[1:2]).plain


def test_efforts_and_switches_of_a_model_that_does_not_reason() -> None:
    switch = {"chat_template_kwargs": {"enable_thinking": False, "thinking": True}}
    assert unused(PLAIN, **switch) == ("/chat_template_kwargs/enable_thinking", "/chat_template_kwargs/thinking")
    assert unused(SWITCHES, **switch) == ("/chat_template_kwargs/thinking",)
    assert unused(PLAIN, reasoning_effort="high") == ("/reasoning_effort",)
    assert unused(PLAIN, reasoning_effort="none") == unused(SWITCHES, reasoning_effort="high") == ()


def test_other_variables_that_a_template_does_not_read_are_refused() -> None:
    for name in ("enable_thinking", "thinking"):
        assert (
            tokenizer(PLAIN).prompts.write([{"role": "user", "content": "x"}], kwargs={name: True}).plain == "user: x\n"
        )
    with pytest.raises(ApiError, match="no variable 'enable_thinkin'"):
        tokenizer(PLAIN).prompts.write([{"role": "user", "content": "x"}], kwargs={"enable_thinkin": True})
