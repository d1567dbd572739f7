"""What comes back: answers and their pieces, as values of Python."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model wants made; `arguments` is JSON as it was written."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a request's `n` answers."""

    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str
    """`stop`, `length` or `tool_calls`."""
    logprobs: dict[str, Any] | None
    """As in OpenAI's answer, where they were asked for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """All that came of one request. What a request with one choice wants of it can be read off it directly."""

    choices: tuple[Choice, ...]
    prompt_tokens: int
    completion_tokens: int
    notes: Mapping[str, str] = field(default_factory=dict)
    """Headers of ours: what of a schema was left out (`x-headrace-relaxed`), which fields meant nothing here."""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The whole answer in OpenAI's shape."""

    @property
    def text(self) -> str:
        """Of the first choice."""
        return self.choices[0].text

    @property
    def reasoning(self) -> str:
        """Of the first choice, where the model thinks before it answers."""
        return self.choices[0].reasoning

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Of the first choice."""
        return self.choices[0].tool_calls

    @property
    def finish_reason(self) -> str:
        """Of the first choice."""
        return self.choices[0].finish_reason

    @property
    def logprobs(self) -> dict[str, Any] | None:
        """Of the first choice."""
        return self.choices[0].logprobs


@dataclass(frozen=True, slots=True)
class Piece:
    """What came next of a streamed answer. Everything but `index` may be empty."""

    index: int = 0
    """Of the choice."""
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    """As in OpenAI's chunks: `index`, and the call's id and name or some of its arguments."""
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


def chat_answer(raw: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
    """Of a chat completion."""
    return _answer(raw, headers, tuple(_chat_choice(choice) for choice in raw["choices"]))


def text_answer(raw: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
    """Of a text completion of one prompt."""
    choices = (
        Choice(choice["text"], "", (), choice["finish_reason"], choice.get("logprobs")) for choice in raw["choices"]
    )
    return _answer(raw, headers, tuple(choices))


def pieces_of(chunk: Mapping[str, Any]) -> list[Piece]:
    """Of a chunk of a streamed chat completion or text completion."""
    return [_piece(choice) for choice in chunk["choices"]]


def _answer(raw: Mapping[str, Any], headers: Mapping[str, str], choices: tuple[Choice, ...]) -> Answer:
    usage = raw["usage"]
    notes = {name: value for name, value in headers.items() if name.startswith("x-headrace-")}
    return Answer(choices, usage["prompt_tokens"], usage["completion_tokens"], notes, raw)


def _chat_choice(choice: Mapping[str, Any]) -> Choice:
    message = choice["message"]
    calls = tuple(
        ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls") or ()
    )
    return Choice(
        text=message.get("content") or "",
        reasoning=message.get("reasoning_content") or "",
        tool_calls=calls,
        finish_reason=choice["finish_reason"],
        logprobs=choice.get("logprobs"),
    )


def _piece(choice: Mapping[str, Any]) -> Piece:
    delta = choice.get("delta") or {"content": choice.get("text")}
    return Piece(
        index=choice["index"],
        text=delta.get("content") or "",
        reasoning=delta.get("reasoning_content") or "",
        tool_calls=tuple(delta.get("tool_calls") or ()),
        finish_reason=choice.get("finish_reason"),
        logprobs=choice.get("logprobs"),
    )
