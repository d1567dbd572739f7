"""What comes of the prompts of one request: taken as text, counted, timed. How it is sent `answering` knows."""

import time
from collections.abc import Callable
from typing import Any

from server.answer.generation import Delta, Generation
from server.answer.relaxed import RELAXED_HEADER, UNUSED_HEADER, pointers_header, relaxed_header
from server.answer.streams import Batch, PromptStreams
from server.protocol.response import usage
from server.telemetry.counters import ServerCounters
from server.telemetry.meter import AnswerMeter
from server.telemetry.record import RequestRecord


class Generated:
    """The answers to prompts that the engine has been given: fed by `take` with what it says, and ended by `end`."""

    def __init__(
        self,
        model: str,
        generations: list[Generation],
        streams: PromptStreams,
        *,
        counters: ServerCounters,
        record: RequestRecord,
        on_begin: Callable[[], None],
    ) -> None:
        """One of the `streams` is for each of the `generations`; `on_begin` is called when the first token has come."""
        self.plan = generations[0].plan
        """That of the first prompt; how answers are to be shown is the same in all."""
        self.streams = streams
        self._generations = generations
        self._counters = counters
        self._record = record
        self._on_begin = on_begin
        self._has_begun = False
        """Whether a token has come."""
        lengths = [len(generation.plan.prompt_token_ids) for generation in generations]
        self._meter = AnswerMeter(counters.of(model), record, lengths, self.plan.n)

    def take(self, batch: Batch) -> list[Delta]:
        """Turn outputs into text, and end the choices on the engine's side that a stop string has ended here.

        Raises `ApiError` if the engine failed the request.
        """
        taken: list[Delta] = []
        now = time.monotonic()
        for position, outputs in batch:
            generation = self._generations[position]
            for delta in generation.take(outputs):
                if delta.finish_reason is not None:
                    self.streams.abort_choice(position, delta.index)
                delta.index += position * generation.plan.n
                self._meter.take(delta.index, len(delta.token_ids), delta.finish_reason, now)
                taken.append(delta)
        if not self._has_begun and self._record.first_token is not None:
            self._has_begun = True
            self._on_begin()
        return taken

    def usage(self) -> dict[str, Any]:
        """Counts so far: every prompt once, all answers together."""
        return usage(
            sum(len(generation.plan.prompt_token_ids) for generation in self._generations),
            sum(generation.completion_tokens for generation in self._generations),
            sum(generation.cached_tokens for generation in self._generations),
            sum(generation.reasoning_tokens for generation in self._generations),
            sum(generation.plan.num_image_tokens for generation in self._generations),
        )

    def notes(self) -> list[tuple[bytes, bytes]]:
        """What was not used, and what was left out of schemas; asked for once in an answer, since that is counted."""
        unused = self.plan.unused
        headers = [(UNUSED_HEADER, pointers_header(unused, len(unused)))] if unused else []
        relaxed = self.streams.relaxed
        if relaxed is not None:
            self._counters.relaxed_requests += 1
            self._counters.relaxed_keywords += relaxed.count
            headers.append((RELAXED_HEADER, relaxed_header(relaxed)))
        return headers

    def end(self, *, gone: bool) -> None:
        """The answers have ended, one way or the other: the engine forgets them, and they are counted."""
        self.streams.abort()
        counters, generations = self._counters, self._generations
        counters.disconnected += gone
        counters.prompt_tokens += sum(len(generation.plan.prompt_token_ids) for generation in generations)
        counters.completion_tokens += sum(generation.completion_tokens for generation in generations)
        self._meter.end(
            gone=gone,
            queue=next((found for generation in generations if (found := generation.queue_seconds) is not None), None),
            compiled=self.streams.compile_seconds,
            cached_tokens=sum(generation.cached_tokens for generation in generations),
        )
