"""Whether launches are dependent (`engine.kernels.triton_dependent`): what is tried at load says so, no setting.

Gaps between its launches are some 4 % of a decoding step of one row, where they weigh most (bench/LOG.md, 2026-11-26).
From capability 9.0 on dependent launches may fill them. So such a step is recorded in both forms.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch

from engine.device.ranks import Ranks
from engine.device.timing import best_device_seconds, recorded
from engine.kernels.launches import dependence

logger = logging.getLogger(__name__)

CAPABILITY = (9, 0)
"""The first whose processors know how to wait for a kernel."""
GAIN = 0.99
"""Dependent launches serve where a step takes at most so much of its time without."""
TOKENS = range(24)
"""Of the steps that are compared. They differ, so that what a step leaves behind is never what the next should find."""
ROUNDS, TURNS = 20, 2


class Replay(NamedTuple):
    """A step that the device repeats by itself."""

    run: Callable[[], object]
    logits: torch.Tensor
    """[1, V], overwritten by each run."""


Put = Callable[[int], Callable[[], torch.Tensor]]
"""Writes a token to where a step of one row reads it; gives the step."""
Record = Callable[[Callable[[], torch.Tensor]], Replay]
Timer = Callable[[Callable[[], object]], float]


def on_device(step: Callable[[], torch.Tensor]) -> Replay:
    """Record a step. Raises what torch and Triton do."""
    step()  # builds its kernels
    torch.cuda.synchronize()
    found: list[torch.Tensor] = []
    graph = recorded(lambda: found.append(step()))
    return Replay(graph.replay, found[0])


def device_seconds(run: Callable[[], object]) -> float:
    """Of one of `ROUNDS` runs, the fastest."""
    return best_device_seconds(run, ROUNDS)


@torch.inference_mode()
def choose_dependent(
    device: torch.device,
    put: Put | None,
    ranks: Ranks | None = None,
    *,
    record: Record = on_device,
    timer: Timer = device_seconds,
) -> bool:
    """Make all launches of this process dependent from now on, or not; whether they are.

    They are where the same tokens have the same logits, to the bit, and the step is faster. Never without a step to
    `put` tokens to, that is, where none is recorded, nor among `ranks`: how their sums go with it was not tried.
    """
    dependence.on = False
    is_able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY
    if put is None or ranks is not None or not is_able:
        return False
    is_better = False
    try:
        is_better = _is_better(put, record, timer)
    except Exception:  # a driver may refuse them, or memory may not suffice; then all is as it was
        logger.info("launches are not dependent: they cannot be tried", exc_info=True)
    dependence.on = is_better
    return is_better


def _is_better(put: Put, record: Record, timer: Timer) -> bool:
    forms: dict[bool, Replay] = {}
    for is_dependent in (False, True):
        dependence.on = is_dependent
        forms[is_dependent] = record(put(0))
    plain, dependent = ([_logits(put, form, token) for token in TOKENS] for form in forms.values())
    if not all(map(torch.equal, plain, dependent)):
        logger.warning("launches are not dependent: the logits of a step would be others")
        return False
    seconds = dict.fromkeys(forms, float("inf"))
    for _ in range(TURNS):
        for is_dependent, form in forms.items():
            seconds[is_dependent] = min(seconds[is_dependent], timer(form.run))
    is_better = seconds[True] <= GAIN * seconds[False]
    logger.info(
        "launches are %s: a decoding step of one row takes %.0f us, and %.0f with dependent ones",
        "dependent" if is_better else "not dependent", seconds[False] * 1e6, seconds[True] * 1e6,
    )  # fmt: skip
    return is_better


def _logits(put: Put, form: Replay, token: int) -> torch.Tensor:
    put(token)
    form.run()
    return form.logits.clone()
