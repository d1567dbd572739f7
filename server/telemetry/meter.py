"""How one answer is timed and counted while it goes on."""

import time
from collections.abc import Sequence

from server.telemetry.counters import ModelCounters
from server.telemetry.record import RequestRecord


class AnswerMeter:
    """Fed with what comes for each choice of a request; what it makes of that goes to the counters and the record.

    Costs less than a microsecond for each token: `python -m bench.counting`.
    """

    def __init__(self, counters: ModelCounters, record: RequestRecord, prompt_lengths: Sequence[int], n: int) -> None:
        """Make it when the engine is asked. `n` choices continue each of the prompts of these lengths."""
        self._counters = counters
        self._record = record
        self._prompt_lengths = prompt_lengths
        num_choices = len(prompt_lengths) * n
        self._lengths = [0] * num_choices
        self._last = [0.0] * num_choices
        """When a choice last got a token, 0.0 before its first."""
        self._finishes: list[str | None] = [None] * num_choices
        record.submitted = time.monotonic() - record.began
        record.prompt_tokens = sum(prompt_lengths)

    def take(self, index: int, num_tokens: int, finish: str | None, now: float) -> None:
        """A choice has got tokens, its end (one of `FINISHES`), or both; `now` is the monotonic clock's."""
        if num_tokens:
            last = self._last[index]
            if last:
                self._counters.between_tokens.observe((now - last) / num_tokens, num_tokens)
            elif self._record.first_token is None:
                self._record.first_token = now - self._record.began
                self._counters.first_token.observe(self._record.first_token)
            self._last[index] = now
            self._lengths[index] += num_tokens
        if finish is not None:
            self._finishes[index] = finish

    def end(self, *, gone: bool, queue: float | None, compiled: float | None, cached_tokens: int) -> None:
        """Nothing more comes. `gone` says whether the client left; `queue` and `compiled` are seconds in the engine."""
        counters, record = self._counters, self._record
        rest = "abort" if gone else "error"
        finishes = [finish or rest for finish in self._finishes]
        record.finish = list(finishes)
        record.completion_tokens = sum(self._lengths)
        record.cached_tokens = cached_tokens
        record.queue = queue
        for finish in finishes:
            counters.finishes[finish] += 1
        for length in self._prompt_lengths:
            counters.prompt_length.observe(length)
        for length in self._lengths:
            counters.answer_length.observe(length)
        if compiled is not None:
            counters.compile.observe(compiled)
        counters.duration.observe(time.monotonic() - record.began)
        self._observe_phases(queue)

    def _observe_phases(self, queue: float | None) -> None:
        record = self._record
        if queue is None or record.submitted is None:
            return
        self._counters.queue.observe(queue)
        if record.first_token is not None:
            self._counters.prefill.observe(max(0.0, record.first_token - record.submitted - queue))
            self._counters.decode.observe(max(self._last) - record.began - record.first_token)
