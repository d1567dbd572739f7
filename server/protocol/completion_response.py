"""The answers of POST /v1/completions: a text completion in one piece, and the chunks of a stream."""

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from server.protocol.response import FinishReason, encode_json


def new_text_completion_id() -> str:
    """An id nobody else has."""
    return f"cmpl-{secrets.token_hex(12)}"


@dataclass(slots=True)
class TextLogprobs:
    """OpenAI's legacy log-probabilities: four lists of one entry for each token.

    `text_offset` says where in the answer's text a token begins. The first token of a prompt has None.
    """

    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def add(self, entry: dict[str, Any], offset: int) -> None:
        """Take one entry of a chat's `logprobs.content`. The token itself is among the likeliest, whether it is or not.

        Where two of them are written alike, the likelier has the name.
        """
        self.tokens.append(legacy_token(entry))
        self.token_logprobs.append(entry["logprob"])
        likeliest: dict[str, float] = {}
        for top in (*entry["top_logprobs"], entry):
            likeliest.setdefault(legacy_token(top), top["logprob"])
        self.top_logprobs.append(likeliest)
        self.text_offset.append(offset)

    def add_first(self, token: str, offset: int) -> None:
        """Take the first token of a prompt, which follows nothing."""
        self.tokens.append(token)
        self.token_logprobs.append(None)
        self.top_logprobs.append(None)
        self.text_offset.append(offset)

    def extend(self, other: "TextLogprobs") -> None:
        """Take all of another's entries."""
        self.tokens += other.tokens
        self.token_logprobs += other.token_logprobs
        self.top_logprobs += other.top_logprobs
        self.text_offset += other.text_offset

    def plain(self) -> dict[str, Any]:
        """As in the answer."""
        return {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }


def legacy_token(entry: dict[str, Any]) -> str:
    """How this interface writes a token: its text, or `bytes:` and its bytes where they are no text by themselves."""
    data = bytes(entry["bytes"])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class TextCompletionEncoder:
    """The JSON of one answer and of its chunks.

    With `continuous_usage` every chunk has the counts so far, else with `include_usage` a null in their place.
    """

    def __init__(
        self, *, model: str, system_fingerprint: str, include_usage: bool = False, continuous_usage: bool = False
    ) -> None:
        self._head = {
            "id": new_text_completion_id(),
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": system_fingerprint,
        }
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, Any]) -> bytes:
        """The answer in one piece."""
        return encode_json({**self._head, "choices": choices, "usage": usage})

    def chunk(self, choice: dict[str, Any], usage: dict[str, Any] | None) -> bytes:
        """A piece of one choice."""
        body: dict[str, Any] = {**self._head, "choices": [choice]}
        if self._continuous_usage:
            body["usage"] = usage
        elif self._include_usage:
            body["usage"] = None
        return encode_json(body)

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        """The last chunk of a stream with `include_usage`."""
        return encode_json({**self._head, "choices": [], "usage": usage})


def text_choice(
    index: int, text: str, logprobs: TextLogprobs | None, finish_reason: FinishReason | None
) -> dict[str, Any]:
    """One choice, or a piece of one."""
    return {
        "index": index,
        "text": text,
        "logprobs": None if logprobs is None else logprobs.plain(),
        "finish_reason": finish_reason,
    }
