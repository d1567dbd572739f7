"""Whether the device waits for the host: the gaps between its operations over some steps of decoding."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

WAIT_MICROSECONDS = 15.0
"""Shorter gaps are the device's own, between two operations of a recorded step."""
LISTED = 16
"""Operations of which the time is told."""
NAME_WIDTH = 90


@dataclass(frozen=True, slots=True)
class Idle:
    """Shares of the time from the first operation's beginning to the last one's end."""

    idle: float
    """In which nothing ran."""
    waiting: float
    """In gaps of more than `WAIT_MICROSECONDS`, in which the device waited for the host."""
    longest_gap_us: float
    operations: int
    longest: dict[str, float] = field(default_factory=dict)
    """Microseconds a step of the operations that take most of it, by name."""


def idle_shares(spans: list[tuple[float, float]]) -> Idle:
    """From begin and end of operations in microseconds, in any order; they may overlap. Raises ValueError for none."""
    if not spans:
        raise ValueError("the profile holds no operation of the device")
    ordered = sorted(spans)
    gaps, reached = [], ordered[0][1]
    for begin, end in ordered:
        if begin > reached:
            gaps.append(begin - reached)
        reached = max(reached, end)
    whole = max(reached - ordered[0][0], 1e-9)
    waits = sum(gap for gap in gaps if gap > WAIT_MICROSECONDS)
    return Idle(sum(gaps) / whole, waits / whole, max(gaps, default=0.0), len(spans))


def profiled(step: Callable[[], object], steps: int, device: torch.device) -> Idle:
    """Idle shares over some steps, of the device's operations, or of torch's on a CPU."""
    on_cuda = device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as found:
        for _ in range(steps):
            step()
        if on_cuda:
            torch.cuda.synchronize(device)
    wanted = DeviceType.CUDA if on_cuda else DeviceType.CPU
    events = [event for event in found.events() or () if event.device_type == wanted]
    idle = idle_shares([span_of(event) for event in events])
    return replace(idle, longest=longest_of([(str(event.name), span_of(event)) for event in events], steps))


def longest_of(named: list[tuple[str, tuple[float, float]]], steps: int) -> dict[str, float]:
    """Microseconds a step of the operations that take most, the longest first, with how often a step has each."""
    taken: Counter[str] = Counter()
    times = Counter(name for name, _ in named)
    for name, (begin, end) in named:
        taken[name] += end - begin
    return {f"{name[:NAME_WIDTH]} x{times[name] / steps:g}": total / steps for name, total in taken.most_common(LISTED)}


def span_of(event: Any) -> tuple[float, float]:
    """Begin and end in microseconds."""
    return float(event.time_range.start), float(event.time_range.end)
