"""Text to token ids and back, and conversations to prompts, for one model.

Built on the tokenizers library and Jinja alone: the API process imports neither torch nor transformers. Everything
here is safe to call from several threads at once.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from engine.errors import ModelLoadError
from engine.messages import ImageInfo
from engine.token_text import TokenText
from server.markup.formats import ToolsSetting
from server.prompt.control_tokens import unused_break
from server.prompt.conversation import Message, text_parts
from server.prompt.model_files import ChatFiles, read_chat_files
from server.prompt.prompt_writer import PromptWriter
from server.prompt.token_bounds import TokenBounds

# Else the library starts threads for texts that come one by one.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class ChatTokenizer:
    """The tokenizer and chat template of one model; made by `load`."""

    def __init__(self, tokenizer: Tokenizer, files: ChatFiles, *, tools: ToolsSetting | None = None) -> None:
        """`tools` overrides what the template says of tool calls.

        Raises `ModelLoadError` where the template is broken or the tokenizer is of an unknown kind.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        decoder = tokenizer.decoder
        self._token_text = TokenText(tokenizer, None if decoder is None else json.loads(decoder.__getstate__()))
        self.leading_spaces = self._token_text.leading_spaces
        self.token_bytes = self._token_text.token_bytes
        self.bounds = TokenBounds(tokenizer, self._token_text.token_bytes)
        """How many tokens a text has at the least."""
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        """Ids the tokenizer knows; the model's logits may be wider."""
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        """Ids that `skip_special_tokens` leaves out of texts."""
        self._newline = self._encode("\n")
        self._adds_space = self._encode("\nx") != self._newline + self._encode("x")
        self.prompts = PromptWriter(tokenizer, files, tools=tools)
        """What makes prompts of conversations."""

    @classmethod
    def load(cls, directory: Path, *, tools: ToolsSetting | None = None) -> "ChatTokenizer":
        """Read tokenizer.json, tokenizer_config.json and the chat template of a model's directory.

        Raises `ModelLoadError` where they are missing, broken, or not of a kind that is understood.
        """
        files = read_chat_files(directory)
        try:
            tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # the library raises plain Exception
            raise ModelLoadError(f"tokenizer.json cannot be read: {error}") from None
        return cls(tokenizer, files, tools=tools)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Id of the end-of-sequence token that the tokenizer's configuration names."""
        token_id = self._tokenizer.token_to_id(self.prompts.special_tokens.get("eos_token", ""))
        return frozenset() if token_id is None else frozenset({token_id})

    def special_marks(self, marks: Iterable[str]) -> dict[str, int]:
        """Those of the texts that are special tokens, which `skip_special_tokens` would leave out, with their ids."""
        ids = {mark: self._tokenizer.token_to_id(mark) for mark in marks}
        return {mark: token_id for mark, token_id in ids.items() if token_id in self.special_ids}

    def encode_prompt(
        self,
        messages: list[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        tool_prompt: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        context: int | None = None,
        images: ImageInfo | None = None,
    ) -> list[int]:
        """The prompt of a conversation as token ids; arguments as in `PromptWriter.write`.

        `images` is how the model takes them. Control tokens come from the template alone, a beginning-of-sequence token
        included. Raises `ApiError` 400 too for a prompt so much longer than `context` tokens that it need not be
        tokenised.
        """
        if context is not None:
            # Before any work that grows with the text. What other turns say, a template may leave out.
            shown = (part for message in messages if message["role"] != "assistant" for part in _texts(message))
            self.bounds.check("".join(shown), context, "messages")
        prompt = self.prompts.write(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            tool_prompt=tool_prompt,
            kwargs=kwargs,
        )
        if context is not None:
            self.bounds.check(prompt.text, context, "messages")
        return self._encode_broken(self._spaced(prompt.text, images), prompt.mark)

    def _spaced(self, text: str, images: ImageInfo | None) -> str:
        """A prompt in which images stand apart from the text, where a model expects that."""
        shown = None if images is None else self._tokenizer.id_to_token(images.shown_id)
        if images is None or shown is None:
            return text
        return text.replace(shown, f"{images.spacing}{shown}{images.spacing}")

    def encode(self, text: str, *, allow_special: bool) -> list[int]:
        """Ids of a text, nothing added; with `allow_special` control tokens in it are matched."""
        if allow_special or not self.prompts.control.occur_in(text):
            return self._encode(text)
        mark = unused_break(text)
        return self._encode_broken(self.prompts.control.broken(text, mark), mark)

    def encode_raw(self, text: str, *, add_special_tokens: bool) -> tuple[list[int], list[bool]]:
        """Ids of a raw prompt, in which control tokens are matched, and which of them the text does not hold.

        With `add_special_tokens` the tokenizer adds what its model expects around a text, as `<s>` before it.
        """
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoding.ids), [bool(added) for added in encoding.special_tokens_mask]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of generated ids. Ids the tokenizer does not know have none."""
        shown = (i for i in ids if i not in self.special_ids) if skip_special_tokens else ids
        text = self._token_text.join(shown).decode("utf-8", "replace")
        for _ in range(self.leading_spaces):
            text = text.removeprefix(" ")
        return text

    def token_text(self, token_id: int) -> str:
        """Text of one token by itself; bytes that are no character by themselves show as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def _encode(self, text: str) -> list[int]:
        return self._encode_all([text])[0]

    def _encode_all(self, texts: list[str]) -> list[list[int]]:
        """Ids of texts. Only the library's calls for many texts let other threads run meanwhile."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _encode_broken(self, text: str, mark: str | None) -> list[int]:
        if mark is None:
            return self._encode(text)
        first, *others = text.split(mark)
        return self._encode(first) + self._encode_continuations([piece for piece in others if piece])

    def _encode_continuations(self, pieces: list[str]) -> list[int]:
        """Ids of texts that do not begin anything, so without the space SentencePiece puts before a first word."""
        if not self._adds_space:
            return [token_id for ids in self._encode_all(pieces) for token_id in ids]
        found: list[int] = []
        length = len(self._newline)
        for piece, ids in zip(pieces, self._encode_all(["\n" + piece for piece in pieces]), strict=True):
            found += ids[length:] if ids[:length] == self._newline else self._encode(piece)
        return found


def _texts(message: Message) -> list[str]:
    return [text.strip() for text in text_parts(message.get("content"))]
