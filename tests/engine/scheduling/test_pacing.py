"""The pacer against made-up step times."""

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


def test_a_step_that_was_held_up_costs_a_prompt_little() -> None:
    pacer = PrefillPacer(512)
    for _ in range(8):
        pacer.observe(0.010, num_decodes=8, num_prefill_tokens=0)
        pacer.observe(0.020, num_decodes=8, num_prefill_tokens=100)
    assert pacer.budget == 100
    pacer.observe(3.0, num_decodes=8, num_prefill_tokens=100)
    assert pacer.budget == 100 / LARGEST_RISE
    for _ in range(12):
        pacer.observe(0.010 + pacer.budget * 1e-4, num_decodes=8, num_prefill_tokens=pacer.budget)
    assert pacer.budget > 90


def test_a_prompt_always_moves_on_and_the_pace_recovers() -> None:
    pacer = PrefillPacer(256)
    pacer.observe(0.010, num_decodes=1, num_prefill_tokens=0)
    pacer.observe(5.0, num_decodes=1, num_prefill_tokens=256)
    assert pacer.budget == SMALLEST_CHUNK
    for _ in range(40):
        pacer.observe(0.0101, num_decodes=1, num_prefill_tokens=SMALLEST_CHUNK)
    assert pacer.budget == 256
