"""The pacer against made-up step times."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from engine.scheduling.pacing import LARGEST_RISE, SLOWDOWN, SMALLEST_CHUNK, PrefillPacer


def test_nothing_is_bounded_before_anything_is_known() -> None:
    pacer = PrefillPacer(128)
    pacer.observe(9.0, num_decodes=0, num_prefill_tokens=512)
    pacer.observe(9.0, num_decodes=4, num_prefill_tokens=128)
    assert pacer.budget == 128


def test_a_growing_prompt_never_slows_steps_much_beyond_the_bound() -> None:
    """A chunk's tokens cost more with every token that stands before them, as attention does."""
    pacer = PrefillPacer(512)
    for _ in range(8):
        pacer.observe(0.010, num_decodes=8, num_prefill_tokens=0)
    done, steps = 0, []
    while done < 6000:
        chunk = min(pacer.budget, 6000 - done)
        seconds = 0.010 + chunk * (100e-6 + done * 0.05e-6)
        pacer.observe(seconds, num_decodes=8, num_prefill_tokens=chunk)
        steps.append(seconds)
        done += chunk
    assert max(steps[1:]) < 0.010 * SLOWDOWN * 1.3
    assert len(steps) < 250


def learned(pacer: PrefillPacer, decode: float, mixed: Callable[[int], float], steps: int = 24) -> None:
    """Show the pacer steps whose chunks are what it asks for; `mixed` says what one with so many tokens takes."""
    for _ in range(steps):
        pacer.observe(decode, num_decodes=8, num_prefill_tokens=0)
        chunk = pacer.budget
        pacer.observe(mixed(chunk), num_decodes=8, num_prefill_tokens=chunk)


def full_chunk(pacer: PrefillPacer) -> int:
    """The next chunk that is no probe."""
    return pacer._chunk


def test_a_step_that_was_held_up_costs_a_prompt_little() -> None:
    pacer = PrefillPacer(512)
    learned(pacer, 0.010, lambda chunk: 0.010 + chunk * 1e-4)
    assert full_chunk(pacer) == pytest.approx(100, abs=1)
    pacer.observe(3.0, num_decodes=8, num_prefill_tokens=100)
    assert full_chunk(pacer) == pytest.approx(100 / LARGEST_RISE, abs=1)
    learned(pacer, 0.010, lambda chunk: 0.010 + chunk * 1e-4, steps=12)
    assert full_chunk(pacer) > 90


@pytest.mark.parametrize("late", range(12))
def test_one_step_that_was_held_up_does_not_hide_what_a_step_costs(late: int) -> None:
    """Also when it is one of the two that the fixed cost is learned from."""
    pacer = PrefillPacer(2048, 256)
    numbers = itertools.count()
    learned(pacer, 0.004, lambda chunk: 0.012 + chunk * 2e-5 + (2.0 if next(numbers) == late else 0.0), steps=60)
    assert pacer.fixed_seconds == pytest.approx(0.008, rel=0.05)
    assert full_chunk(pacer) == pytest.approx(0.006 / 2e-5, rel=0.1)


def test_a_prompt_always_moves_on_and_the_pace_recovers() -> None:
    pacer = PrefillPacer(256)
    pacer.observe(0.010, num_decodes=1, num_prefill_tokens=0)
    pacer.observe(5.0, num_decodes=1, num_prefill_tokens=256)
    assert pacer.budget == SMALLEST_CHUNK
    for _ in range(40):
        pacer.observe(0.0101, num_decodes=1, num_prefill_tokens=SMALLEST_CHUNK)
    assert pacer.budget == 256


DECODES = (0.0012, 0.004, 0.02)
LAUNCHES = (0.0, 0.003, 0.006, 0.008, 0.010, 0.030)
TOKENS = (4e-6, 20e-6, 100e-6)
GROWTHS = (0.0, 1 / 16384)


@dataclass(frozen=True)
class Device:
    """One whose mixed steps are launched in a fixed time, while it computes those before."""

    decode: float
    launch: float
    token: float
    growth: float

    def mixed(self, tokens: int, context: int) -> float:
        """Seconds of a step with a chunk of so many tokens behind so many."""
        return max(self.launch, self.decode + self.chunk(tokens, context))

    def chunk(self, tokens: int, context: int) -> float:
        """Seconds of computing the chunk."""
        return tokens * self.token * (1 + self.growth * (context + tokens / 2))

    def alone(self, prompt: int, largest: int) -> float:
        """Seconds of a prompt with nothing beside it."""
        starts = range(0, prompt, largest)
        return sum(max(self.launch, self.chunk(min(largest, prompt - start), start)) for start in starts)


@pytest.mark.parametrize(
    "device", [Device(*numbers) for numbers in itertools.product(DECODES, LAUNCHES, TOKENS, GROWTHS)], ids=str
)
def test_on_no_device_does_a_prompt_starve_or_hold_up_the_others(device: Device) -> None:
    """A prompt of 16k tokens takes at most three times as long as alone; the others' tokens at most three times as
    long as without it, or two thirds more than the least that a mixed step can take there.

    Before the fixed cost was told apart, chunks shrank to 8 tokens wherever launching took twice a decoding step.
    """
    prompt, largest, smallest = 16384, 2048, 256
    pacer = PrefillPacer(largest, smallest)
    waits: list[float] = []
    taken = 0.0
    for _ in range(2):  # the second prompt meets a pacer that has learned
        waits, taken, done = [], 0.0, 0
        pacer.observe(device.decode, num_decodes=8, num_prefill_tokens=0)
        while done < prompt:
            chunk = min(pacer.budget, prompt - done)
            waits.append(device.mixed(chunk, done))
            pacer.observe(waits[-1], num_decodes=8, num_prefill_tokens=chunk)
            taken, done = taken + waits[-1], done + chunk
    assert taken <= 3 * device.alone(prompt, 8192) + 3 * device.mixed(smallest, 0)
    least = device.mixed(smallest, prompt)
    assert sorted(waits)[len(waits) * 95 // 100] <= max(3 * device.decode, 5 / 3 * least)
