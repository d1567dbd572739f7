"""Whether launches are dependent (`engine.kernels.triton_dependent`): what is tried at load says so, no setting.

Gaps between its launches are some 4 % of a decoding step of one row, where they weigh most (bench/LOG.md, 2026-11-26).
From capability 9.0 on dependent launches may fill them. So such a step is recorded in both forms.

A trial that takes its process along, or never ends, leaves a mark in the cache. The next start finds it, takes it away
and tries nothing, so that it is a start and not the server that is lost.
"""

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from engine.cache import cache_dir
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
CONTEXT = 2048
"""Of the step that is tried: long enough that its attention is cut into pieces and joined."""
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
    settle: Callable[[], None] = torch.cuda.synchronize,
) -> bool:
    """Make all launches of this process dependent from now on, or not; whether they are.

    They are where the same tokens have the same logits, to the bit, and the step is faster. Never without a step to
    `put` tokens to, that is, where none is recorded, nor among `ranks`: how their sums go with it was not tried.
    Raises what `settle` raises where a trial that failed has taken the device along.
    """
    dependence.on = False
    is_able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY
    if put is None or ranks is not None or not is_able:
        return False
    mark = cache_dir() / "dependent-launches"
    if _is_left(mark):
        logger.warning("launches are not dependent: the last trial of that did not end; the next start tries again")
        return False
    is_better = False
    _write(mark)
    try:
        is_better = _is_better(put, record, timer)
    except Exception:  # a driver may refuse them, or memory may not suffice
        dependence.on = False
        settle()  # then all is as it was
        logger.info("launches are not dependent: they cannot be tried", exc_info=True)
    _take_away(mark)
    dependence.on = is_better
    return is_better


def _write(mark: Path) -> None:
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(_this_process(os.getpid()), encoding="ascii")
    except OSError as error:
        logger.info("that dependent launches are tried cannot be noted: %s", error.strerror)


def _take_away(mark: Path) -> None:
    with contextlib.suppress(OSError):
        mark.unlink(missing_ok=True)


def _is_left(mark: Path) -> bool:
    """Whether a process that is gone has left its mark; then it is taken away."""
    try:
        who = mark.read_text(encoding="ascii")
        if who == _this_process(int(who.split()[0])):
            return False  # another model's, which is being tried now
    except (OSError, ValueError, IndexError):
        return False
    except psutil.Error:
        pass
    _take_away(mark)
    return True


def _this_process(pid: int) -> str:
    """A process and when it began: numbers come again, in a container with each start."""
    return f"{pid} {psutil.Process(pid).create_time()}"


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
