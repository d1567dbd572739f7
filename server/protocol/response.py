"""The answers: a chat completion in one piece, and the chunks of a stream.

The shapes are OpenAI's, and satisfy Hugging Face's schemas too (`system_fingerprint` is a string), but for what those
ask of a stream: a role in every delta, and an id in every piece of a call. Clients lay the texts of deltas end to end,
so what stands in each would come out as often as there were deltas.

A stream is a hot path, so what is constant in a chunk is encoded once for each request.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from server.markup.events import CallArguments, CallOpened

FinishReason = Literal["stop", "length", "tool_calls", "function_call", "content_filter"]

_encode = msgspec.json.Encoder().encode


def new_completion_id() -> str:
    """An id nobody else has."""
    return f"chatcmpl-{secrets.token_hex(12)}"


def usage(
    prompt_tokens: int,
    completion_tokens: int,
    cached_tokens: int = 0,
    reasoning_tokens: int = 0,
    image_tokens: int = 0,
) -> dict[str, Any]:
    """Token counts of a request; `cached_tokens` of the prompt came from the prefix cache.

    `image_tokens` of the prompt stand for images, and are named where there are any.
    """
    of_images = {"image_tokens": image_tokens} if image_tokens else {}
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens, **of_images},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A tool call of an answer; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str

    def plain(self) -> dict[str, Any]:
        """OpenAI's object."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One finished answer. `logprobs` holds an entry for each generated token, None where none were asked for."""

    index: int
    content: str
    finish_reason: FinishReason
    reasoning: str = ""
    tool_calls: Sequence[FunctionCall] = ()
    calls_functions: bool = False
    """The call stands in OpenAI's older form, `function_call`."""
    logprobs: Sequence[dict[str, Any]] | None = None

    def message(self) -> dict[str, Any]:
        """The assistant's turn. Its content is null where there are only calls: elsewhere it must be a string."""
        content = self.content or (None if self.tool_calls else "")
        message = {"role": "assistant", "content": content, "refusal": None}
        if self.reasoning:
            message |= {"reasoning": self.reasoning, "reasoning_content": self.reasoning}
        if not self.tool_calls:
            return message
        calls = [call.plain() for call in self.tool_calls]
        return message | ({"function_call": calls[0]["function"]} if self.calls_functions else {"tool_calls": calls})


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
                "message": choice.message(),
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
        """The first chunk of a choice that begins with text: the role, and no text yet."""
        return self.text(index, "", usage=usage, opens=True)

    def text(
        self,
        index: int,
        text: str,
        logprobs: Sequence[dict[str, Any]] | None = None,
        usage: dict[str, Any] | None = None,
        *,
        opens: bool = False,
    ) -> bytes:
        """New text of a choice, whose first chunk `opens` it. `usage` is used with `continuous_usage` only."""
        return self._chunk(index, b'"content":' + _encode(text), logprobs, usage, opens)

    def reasoning(self, index: int, text: str, usage: dict[str, Any] | None = None, *, opens: bool = False) -> bytes:
        """New reasoning of a choice, under both names that clients look for."""
        encoded = _encode(text)
        return self._chunk(index, b'"reasoning":%b,"reasoning_content":%b' % (encoded, encoded), None, usage, opens)

    def calls(
        self,
        index: int,
        pieces: Sequence[dict[str, Any]],
        usage: dict[str, Any] | None = None,
        *,
        opens: bool = False,
        as_function: bool = False,
    ) -> bytes:
        """New pieces of a choice's tool calls; see `call_pieces`. `as_function`: of its one call, in the older form."""
        encoded = (
            b'"function_call":' + _encode(pieces[0]["function"]) if as_function else b'"tool_calls":' + _encode(pieces)
        )
        return self._chunk(index, encoded, None, usage, opens)

    def _chunk(
        self,
        index: int,
        fields: bytes,
        logprobs: Sequence[dict[str, Any]] | None,
        usage: dict[str, Any] | None,
        opens: bool,
    ) -> bytes:
        return b"".join(
            (
                self._head,
                b'{"index":%d,"delta":{' % index,
                b'"role":"assistant",' if opens else b"",
                fields,
                b'},"logprobs":',
                b"null" if logprobs is None else _encode(_logprobs(logprobs)),
                b',"finish_reason":null}',
                self._close(usage),
            )
        )

    def finish(
        self, index: int, finish_reason: FinishReason, usage: dict[str, Any] | None = None, *, called: bool = False
    ) -> bytes:
        """The last chunk of a choice. Its content is empty, for those who print it; after calls there is none."""
        return b"".join(
            (
                self._head,
                b'{"index":%d,"delta":%b,"logprobs":null,"finish_reason":'
                % (index, b"{}" if called else b'{"content":""}'),
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


def call_pieces(events: Sequence[CallOpened | CallArguments]) -> list[dict[str, Any]]:
    """One piece for each call that something came for: clients tell the pieces of a chunk apart by their index.

    The first of a call has its id, type and name, and no other: clients lay these end to end as well.
    """
    pieces: dict[int, dict[str, Any]] = {}
    for event in events:
        if isinstance(event, CallOpened):
            function = {"name": event.name, "arguments": ""}
            pieces[event.index] = {"index": event.index, "id": event.id, "type": "function", "function": function}
        else:
            piece = pieces.setdefault(event.index, {"index": event.index, "function": {"arguments": ""}})
            piece["function"]["arguments"] += event.text
    return list(pieces.values())


def _logprobs(entries: Sequence[dict[str, Any]] | None) -> dict[str, Any] | None:
    return None if entries is None else {"content": list(entries), "refusal": None}
