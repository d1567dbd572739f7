"""From the token ids of one answer to what its text turns out to be: reasoning, tool calls, content.

One chain for all requests, streamed or not: bytes to text, reasoning parted from the answer, calls taken out of it, and
stop strings looked for in what is left, which is the content. Whatever the pieces, they add up to the same.
"""

from collections.abc import Iterable, Sequence

from server.answer.detokenizer import Detokenizer
from server.answer.stop_strings import StopScanner
from server.markup.events import ContentText, Event, ReasoningText
from server.markup.parser import CallParser
from server.markup.reading import CONTENT_ONLY, Reading
from server.markup.reasoning import SPACE, ReasoningParser
from server.prompt.plan import PromptPlan
from server.prompt.tokenizer import ChatTokenizer


class AnswerText:
    """The text of one answer."""

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        reading: Reading = CONTENT_ONLY,
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        hidden_ids: frozenset[int] = frozenset(),
        prompt_tail_ids: Sequence[int] = (),
    ) -> None:
        """`hidden_ids` are never shown, as stop tokens. `prompt_tail_ids` are the end of a text that is continued."""
        self.stopped: str | None = None
        """The stop string that ended the content; whatever is pushed after it is dropped."""
        self._reading = reading
        self._detokenizer = Detokenizer(
            tokenizer,
            skip_special_tokens=skip_special_tokens,
            hidden_ids=hidden_ids,
            shown_ids=reading.shown_ids,
            prompt_tail_ids=prompt_tail_ids,
        )
        may_reason = reading.reasoning != "none"
        self._reasoning = ReasoningParser(is_open=reading.reasoning == "open") if may_reason else None
        self._calls: CallParser | None = None
        self._stops = StopScanner(tuple(stop), include_stop) if stop else None
        self._has_content = False

    @classmethod
    def of_plan(cls, plan: PromptPlan, tokenizer: ChatTokenizer) -> "AnswerText":
        """A fresh one for one of the plan's `n` answers."""
        return cls(
            tokenizer,
            plan.reading,
            stop=plan.stop,
            include_stop=plan.include_stop,
            skip_special_tokens=plan.skip_special_tokens,
            hidden_ids=plan.hidden_ids,
            prompt_tail_ids=plan.prompt_token_ids[-1:] if plan.continues else (),
        )

    @property
    def is_reasoning(self) -> bool:
        """Whether the text so far ends within reasoning."""
        return self._reasoning is not None and self._reasoning.is_reasoning

    @property
    def num_calls(self) -> int:
        """Tool calls so far."""
        return 0 if self._calls is None else self._calls.num_calls

    def push(self, ids: Iterable[int]) -> list[Event]:
        """What is certain once these ids have come."""
        return [] if self.stopped is not None else self._read(self._detokenizer.push(ids))

    def finish(self) -> list[Event]:
        """What was held back, once no more ids will come. To be called once, last."""
        if self.stopped is not None:
            return []
        events = self._read(self._detokenizer.finish())
        if self._reasoning is not None:
            reasoning, text = self._reasoning.finish()
            events += [ReasoningText(reasoning)] if reasoning else []
            events += self._read_answer(text)
        if self._calls is not None:
            events += self._sift(self._calls.finish())
        if self._stops is not None and self.stopped is None and (held := self._stops.flush()):
            events.append(ContentText(held))
        return events

    def _read(self, text: str) -> list[Event]:
        if self._reasoning is None or self._reasoning.in_answer:
            return self._read_answer(text)
        reasoning, text = self._reasoning.push(text)
        events: list[Event] = [ReasoningText(reasoning)] if reasoning else []
        return events + self._read_answer(text)

    def _read_answer(self, text: str) -> list[Event]:
        if not text:
            return []
        if self._reading.calls is None:
            return self._content(text)
        if self._calls is None:
            self._calls = CallParser(
                self._reading.calls,
                self._reading.tool_names,
                # The grammar, which has seen the reasoning too, knows of no new beginning behind it.
                at_start=self._reasoning is None or not self._reasoning.opened_itself,
                recover=self._reading.recover,
            )
        return self._sift(self._calls.push(text))

    def _sift(self, events: list[Event]) -> list[Event]:
        """The events up to the first stop string in their content."""
        sifted: list[Event] = []
        for event in events:
            if self.stopped is not None:
                break
            sifted += self._content(event.text) if isinstance(event, ContentText) else [event]
        return sifted

    def _content(self, text: str) -> list[Event]:
        if not self._has_content:
            if self._reasoning is not None and self._reasoning.was_open and not self._reading.exact:
                text = text.lstrip(SPACE)
            self._has_content = bool(text)
        if self._stops is not None and text:
            text, self.stopped = self._stops.feed(text)
        return [ContentText(text)] if text else []
