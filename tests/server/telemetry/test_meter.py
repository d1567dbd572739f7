"""What is counted of one answer, at made-up times."""

import pytest

from server.telemetry import meter as module
from server.telemetry.counters import FINISHES, SECONDS, Histogram, ModelCounters
from server.telemetry.meter import AnswerMeter
from server.telemetry.record import RequestRecord


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def metered(clock: Clock, prompts: list[int], n: int = 1) -> tuple[AnswerMeter, ModelCounters, RequestRecord]:
    record = RequestRecord("req-1", "POST", "/v1/chat/completions", began=clock.now)
    clock.now += 0.5  # until the engine is asked
    counters = ModelCounters()
    return AnswerMeter(counters, record, prompts, n), counters, record


def summed(histogram: Histogram) -> tuple[int, float]:
    return sum(histogram.counts), pytest.approx(histogram.total)


def test_stages_add_up_to_the_whole(clock: Clock) -> None:
    meter, counters, record = metered(clock, [7])
    for seconds, num_tokens in ((1.5, 1), (0.25, 1), (0.5, 2)):
        clock.now += seconds
        meter.take(0, num_tokens, "stop" if num_tokens == 2 else None, clock.now)
    clock.now += 0.125  # until the last byte is sent
    meter.end(gone=False, queue=1.0, compiled=0.75, cached_tokens=3)
    assert summed(counters.first_token) == (1, 2.0) and record.first_token == 2.0
    assert summed(counters.queue) == (1, 1.0) and summed(counters.prefill) == (1, 0.5)
    assert summed(counters.decode) == (1, 0.75) == (1, counters.between_tokens.total)
    assert summed(counters.between_tokens) == (3, 0.75), "two that came together share what they took"
    assert summed(counters.duration) == (1, 2.875) and summed(counters.compile) == (1, 0.75)
    assert summed(counters.prompt_length) == (1, 7) and summed(counters.answer_length) == (1, 4)
    assert counters.finishes == dict.fromkeys(FINISHES, 0) | {"stop": 1}
    assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == (7, 4, 3)
    assert record.finish == ["stop"]


@pytest.mark.parametrize(("gone", "reason"), [(True, "abort"), (False, "error")])
def test_choices_that_have_not_ended_are_told_apart(clock: Clock, gone: bool, reason: str) -> None:
    meter, counters, record = metered(clock, [7, 9], n=2)
    meter.take(1, 1, "length", clock.now)
    meter.take(3, 0, "tool_calls", clock.now)
    meter.end(gone=gone, queue=None, compiled=None, cached_tokens=0)
    assert record.finish == [reason, "length", reason, "tool_calls"]
    assert counters.finishes[reason] == 2 and counters.finishes["length"] == counters.finishes["tool_calls"] == 1
    assert sum(counters.queue.counts) == sum(counters.decode.counts) == sum(counters.compile.counts) == 0
    assert summed(counters.prompt_length) == (2, 16) and summed(counters.answer_length) == (4, 1)


def test_a_value_at_a_bound_is_within_it() -> None:
    histogram = Histogram()
    for value in (SECONDS[0], SECONDS[0] * 1.01, SECONDS[-1] + 1):
        histogram.observe(value)
    assert histogram.counts[:2] == [1, 1] and histogram.counts[-1] == 1
