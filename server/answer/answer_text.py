"""From the token ids of one answer to what its text turns out to be: reasoning, tool calls, content.

One chain for all requests, streamed or not: bytes to text, reasoning parted from the answer, calls taken out of it, and
stop strings looked for in what is left, which is the content. Whatever the pieces, they add up to the same.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from server.answer.detokenizer import Detokenizer
from server.answer.spelling import Spelling
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
        spells: bool = False,
    ) -> None:
        """`hidden_ids` are never shown, as stop tokens. `prompt_tail_ids` are the end of a text that is continued.

        With `spells` tokens come one by one, to `push_scored`, and `spelled` has those that make up the content.
        """
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
        self._spelling = Spelling() if spells else None
        self.spelled: list[dict[str, Any]] = []
        """Entries of tokens that were shown, for whoever reads them to take away."""
        self._num_chars = 0
        """Of the text so far."""
        self._answer_at = 0
        """Where in it the answer begins, behind its reasoning."""

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
            spells=plan.spells,
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

    def push_scored(self, token_id: int, entry: dict[str, Any]) -> list[Event]:
        """What is certain once this token has come, whose log-probabilities `entry` has."""
        if self.stopped is not None or self._detokenizer.hides(token_id):
            return []
        assert self._spelling is not None
        text = self._detokenizer.push((token_id,))
        self._spelling.read(entry, text, is_whole=self._detokenizer.is_whole)
        was_other = self._is_other
        events = self._read(text)
        if was_other and self._is_other:
            self._spelling.forget()
        return events

    def finish(self, *, cut: bool = False) -> list[Event]:
        """What was held back, once no more ids will come. To be called once, last.

        Of an answer that was `cut`, what could yet have become a call or a mark is left out.
        """
        events = [] if self.stopped is not None else self._read_rest(cut)
        if self._spelling is not None:
            self.spelled += self._spelling.finish()
        return events

    def _read_rest(self, cut: bool) -> list[Event]:
        text = self._detokenizer.finish()
        if self._spelling is not None:
            self._spelling.read(None, text)
        events = self._read(text)
        if self._reasoning is not None:
            reasoning, text = self._reasoning.finish(cut=cut)
            events += [ReasoningText(reasoning)] if reasoning else []
            events += self._read_answer(text)
        if self._calls is not None:
            events += self._sift(self._calls.finish(cut=cut))
        if self._stops is not None and self.stopped is None and (held := self._stops.flush()):
            events.append(self._shown(held))
        return events

    @property
    def _is_other(self) -> bool:
        """Whether what comes next is no content, as far as is known."""
        return self.is_reasoning or (self._calls is not None and self._calls.in_arguments)

    def _read(self, text: str) -> list[Event]:
        self._num_chars += len(text)
        if self._reasoning is None or self._reasoning.in_answer:
            return self._read_answer(text)
        reasoning, text = self._reasoning.push(text)
        events: list[Event] = [ReasoningText(reasoning)] if reasoning else []
        return events + self._read_answer(text)

    def _read_answer(self, text: str) -> list[Event]:
        if not text:
            return []
        if self._reading.calls is None:
            return self._content(text, self._num_chars - len(text))
        if self._calls is None:
            self._answer_at = self._num_chars - len(text)
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
            if isinstance(event, ContentText):
                sifted += self._content(event.text, self._answer_at + event.at)
            else:
                sifted.append(event)
        return sifted

    def _content(self, text: str, at: int) -> list[Event]:
        """Content that stands at `at` in the whole text."""
        if not self._has_content:
            if self._reasoning is not None and self._reasoning.was_open and not self._reading.exact:
                length, text = len(text), text.lstrip(SPACE)
                at += length - len(text)
            self._has_content = bool(text)
        if self._spelling is not None and text:
            self._spelling.write(at, len(text))
        if self._stops is not None and text:
            text, self.stopped = self._stops.feed(text)
        return [self._shown(text)] if text else []

    def _shown(self, text: str) -> ContentText:
        """Content that nothing can hold back any more."""
        if self._spelling is not None:
            self.spelled += self._spelling.show(len(text))
        return ContentText(text)
