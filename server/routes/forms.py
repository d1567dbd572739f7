"""What tells the answers of one route that generates from those of another."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from server.answer.generation import Delta
from server.prompt.plan import PromptPlan
from server.prompt.text_messages import TextRoute
from server.prompt.tokenizer import ChatTokenizer


class AnswerForm(Protocol):
    """What one kind of answer looks like. Fed with every delta of a request, either by `add` or by `chunks`."""

    def add(self, delta: Delta) -> None:
        """Take a delta into an answer that is sent whole."""

    def whole(self, usage: dict[str, Any]) -> bytes:
        """The answer in one piece, as JSON, once all deltas are in."""

    def chunks(self, delta: Delta, usage: dict[str, Any] | None) -> list[bytes]:
        """The chunks of a stream that a delta makes, as JSON; `usage` is the counts so far, if they are asked for."""

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        """The last chunk of a stream that ends with its usage."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What tells the requests of a route that generates from those of another."""

    route: TextRoute
    form: Callable[[str, list[PromptPlan], ChatTokenizer], AnswerForm]
    """What answers look like, from the model's full name, the plans and the tokenizer."""
    says_done: bool = True
    """Whether streams end with `[DONE]`."""
