"""Real tokenizers for the tests of text."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from server.prompt.model_files import ChatFiles
from server.prompt.tokenizer import ChatTokenizer
from tests.places import SHARED
from tests.server.texts import shared_tokenizer_files, tiny_sentencepiece

Load = Callable[[str], ChatTokenizer]


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_dir: Path) -> ChatTokenizer:
    """The default model's tokenizer and template."""
    return ChatTokenizer.load(smollm2_dir)


@pytest.fixture(scope="session")
def load_tokenizer(smollm2_tokenizer: ChatTokenizer) -> Load:
    """By name: `smollm2`, `sentencepiece` (a tiny one made here), or a tokenizer of ../shared/tokenizers."""

    @cache
    def load(name: str) -> ChatTokenizer:
        if name == "smollm2":
            return smollm2_tokenizer
        if name == "sentencepiece":
            return ChatTokenizer(tiny_sentencepiece(), ChatFiles(special_tokens={}, templates={}))
        return ChatTokenizer(*shared_tokenizer_files(name))

    return load


@pytest.fixture(scope="session")
def shared_tokenizer(load_tokenizer: Load) -> Load:
    """A tokenizer of ../shared/tokenizers under one of ../shared/chat-templates, `NAME/TEMPLATE` or `NAME`."""

    @cache
    def load(name: str) -> ChatTokenizer:
        tokenizer_name, _, template_name = name.partition("/")
        if not template_name:
            return load_tokenizer(tokenizer_name)
        tokenizer, files = shared_tokenizer_files(tokenizer_name)
        template = (SHARED / "chat-templates" / f"{template_name}.jinja").read_text()
        return ChatTokenizer(tokenizer, ChatFiles(special_tokens=files.special_tokens, templates={"default": template}))

    return load
