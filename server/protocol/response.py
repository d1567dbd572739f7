"""The answers: a chat completion in one piece, and the chunks of a stream.

The shapes satisfy Hugging Face's schemas (`system_fingerprint` is a string, every delta has a role) and OpenAI's
types at once. A stream is a hot path, so what is constant in a chunk is encoded once for each request.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]

_encode = msgspec.json.Encoder().encode


def new_completion_id() -> str:
    """An id nobody else has."""
    return f"chatcmpl-{secrets.token_hex(12)}"


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> dict[str, Any]:
    """Token counts of a request; `cached_tokens` of the prompt came from the prefix cache."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One finished answer. `logprobs` holds an entry for each generated token, None where none were asked for."""

    index: int
    content: str
    finish_reason: FinishReason
    logprobs: Sequence[dict[str, Any]] | None = None


def chat_completion(
    *,
    completion_id: str,
    created: int,
    model: str,
    system_fingerprint: str,
    choices: Sequence[Choice],
    usage: dict[str, Any],
) -> dict[str, Any]:
    """The body of an answer that is not streamed. `created` is in seconds since 1970."""
    return {
        "id": completion_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "system_fingerprint": system_fingerprint,
        "choices": [
            {
                "index": choice.index,
                "message": {"role": "assistant", "content": choice.content, "refusal": None},
                "logprobs": _logprobs(choice.logprobs),
                "finish_reason": choice.finish_reason,
            }
            for choice in choices
        ],
        "usage": usage,
    }


def encode_json(value: Any) -> bytes:
    """UTF-8 JSON of plain data."""
    return _encode(value)


class ChunkEncoder:
    """The chunks of one stream, as JSON bytes without any framing.

    With `continuous_usage` every chunk has the counts so far, else with `include_usage` a null in their place; its last
    chunk, from `usage`, has the final counts and no choices. Without it no chunk has the field.
    """

    def __init__(
        self,
        *,
        completion_id: str,
        model: str,
        system_fingerprint: str,
        created: int | None = None,
        include_usage: bool = False,
        continuous_usage: bool = False,
    ) -> None:
        head = _encode(
            {
                "id": completion_id,
                "object": "chat.completion.chunk",
                "created": int(time.time()) if created is None else created,
                "model": model,
                "system_fingerprint": system_fingerprint,
            }
        )
        self._head = head[:-1] + b',"choices":['
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage
        self._tail = b'],"usage":null}' if include_usage else b"]}"

    def role(self, index: int, usage: dict[str, Any] | None = None) -> bytes:
        """The first chunk of a choice: the role, and no text yet."""
        return self.text(index, "", usage=usage)

    def text(
        self,
        index: int,
        text: str,
        logprobs: Sequence[dict[str, Any]] | None = None,
        usage: dict[str, Any] | None = None,
    ) -> bytes:
        """New text of a choice. `usage` is used with `continuous_usage` only."""
        return b"".join(
            (
                self._head,
                b'{"index":%d,"delta":{"role":"assistant","content":' % index,
                _encode(text),
                b'},"logprobs":',
                b"null" if logprobs is None else _encode(_logprobs(logprobs)),
                b',"finish_reason":null}',
                self._close(usage),
            )
        )

    def finish(self, index: int, finish_reason: FinishReason, usage: dict[str, Any] | None = None) -> bytes:
        """The last chunk of a choice."""
        return b"".join(
            (
                self._head,
                b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":' % index,
                _encode(finish_reason),
                b"}",
                self._close(usage),
            )
        )

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The last chunk of a stream with `include_usage`."""
        return b"".join((self._head, b'],"usage":', _encode(usage), b"}"))

    def _close(self, usage: dict[str, Any] | None) -> bytes:
        if self._continuous_usage and usage is not None:
            return b"".join((b'],"usage":', _encode(usage), b"}"))
        return self._tail


def _logprobs(entries: Sequence[dict[str, Any]] | None) -> dict[str, Any] | None:
    return None if entries is None else {"content": list(entries), "refusal": None}
