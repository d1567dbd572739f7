"""The tokens of a model as grammars see them: bytes by id, which of them are control tokens, which end a text."""

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from engine.errors import ModelLoadError
from engine.token_text import TokenText


class Vocabulary:
    """All tokens up to the width of the logits; ids the tokenizer does not know have no bytes and are never allowed."""

    def __init__(
        self,
        tokens: list[bytes],
        *,
        special_ids: Iterable[int],
        eos_token_ids: Iterable[int],
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.tokens = tokens
        self.special_ids = frozenset(special_ids)
        """Control tokens: part of no text, whatever their bytes."""
        self.eos_token_ids = tuple(sorted(token for token in set(eos_token_ids) if 0 <= token < len(tokens)))
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, directory: Path, *, size: int, eos_token_ids: Iterable[int]) -> "Vocabulary":
        """Read tokenizer.json. `size` is the width of the logits.

        Raises `ModelLoadError` for a missing file or a tokenizer of an unknown kind.
        """
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise ModelLoadError("constraints need the model's tokenizer.json, and there is none")
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.encode_special_tokens = True  # a text that spells a control token is made of ordinary ones
        decoder = tokenizer.decoder
        text = TokenText(tokenizer, None if decoder is None else json.loads(decoder.__getstate__()))
        eos = frozenset(eos_token_ids)
        special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special} | eos
        return cls(
            [text.token_bytes(token_id) for token_id in range(size)],
            special_ids=(token_id for token_id in special if token_id < size),
            eos_token_ids=eos,
            tokenizer=tokenizer,
        )

    @property
    def size(self) -> int:
        """Width of the logits."""
        return len(self.tokens)

    def spelled(self, text: bytes) -> list[int]:
        """Ordinary tokens whose bytes are exactly these, up to a byte that no token spells.

        They are the tokenizer's as far as its normaliser leaves the text as it is, then the longest that fit.
        """
        ids: list[int] = []
        for token_id in self._usual(text):
            token = self.tokens[token_id] if token_id < len(self.tokens) and token_id not in self.special_ids else b""
            if not token or not text.startswith(token):
                break
            ids.append(token_id)
            text = text[len(token) :]
        return [*ids, *self._longest(text)]

    def _usual(self, text: bytes) -> list[int]:
        """The tokenizer's tokens of as much as is whole characters, which say something else where it normalises."""
        if self._tokenizer is None:
            return []
        ids: list[int] = self._tokenizer.encode(text.decode("utf-8", "ignore"), add_special_tokens=False).ids
        return ids

    def _longest(self, text: bytes) -> list[int]:
        ids: list[int] = []
        while text:
            ends = range(min(len(text), self._longest_size), 0, -1)
            size = next((end for end in ends if text[:end] in self._by_text), 0)
            if not size:
                break
            ids.append(self._by_text[text[:size]])
            text = text[size:]
        return ids

    @cached_property
    def _by_text(self) -> dict[bytes, int]:
        return {token: i for i, token in enumerate(self.tokens) if token and i not in self.special_ids}

    @cached_property
    def _longest_size(self) -> int:
        return max(map(len, self._by_text), default=0)


class LlguidanceVocabulary:
    """A vocabulary in the form that `llguidance.LLTokenizer` takes (its `TokenizerWrapper`)."""

    is_tokenizer_wrapper = True

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = vocabulary.tokens
        self.special_token_ids = sorted(vocabulary.special_ids)
        # It wants one; where a model has none, its last token stands in, and nothing ends but by `is_finished`.
        self.eos_token_id = vocabulary.eos_token_ids[0] if vocabulary.eos_token_ids else vocabulary.size - 1
        self.bos_token_id: int | None = None
        self._vocabulary = vocabulary

    def __call__(self, text: Any) -> list[int]:
        """Tokens of a text; used only where they are forced."""
        return self._vocabulary.spelled(text.encode() if isinstance(text, str) else bytes(text))
