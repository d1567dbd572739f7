"""The device's clock, and what the device does at best: `python -m engine.measuring.ceilings DEVICE DTYPE THREADS`."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict

import torch

from engine.costs import Ceilings

FP8_LIMIT = 448.0
"""Largest number of e4m3."""


def measure_ceilings(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Ceilings:
    """Copy memory, and multiply square matrices, several times; the best of each. Smaller sizes on a CPU."""
    small = device.type == "cpu"
    copied, width = (2**28, 1024) if small else (2**32, 8192)
    copying = copy_seconds(copied, device)
    left, right = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    multiplying = best_seconds(lambda: left @ right, device)
    work = 2.0 * width**3
    fp8 = None if small else fp8_seconds(left, right, device)
    return Ceilings(2 * copied / copying, work / multiplying, None if fp8 is None else work / fp8)


def copy_seconds(num_bytes: int, device: torch.device) -> float:
    """Seconds of a copy within the device's memory."""
    source = torch.randint(0, 255, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return best_seconds(lambda: target.copy_(source), device)


def fp8_seconds(left: torch.Tensor, right: torch.Tensor, device: torch.device) -> float | None:
    """Seconds of the product in FP8, None where torch or the device cannot do it."""
    a, b = (side.clamp(-FP8_LIMIT, FP8_LIMIT).to(torch.float8_e4m3fn) for side in (left, right.t().contiguous()))
    scale_a = torch.ones(len(a), 1, device=device)
    scale_b = torch.ones(1, len(b), device=device)
    try:
        return best_seconds(
            lambda: torch._scaled_mm(a, b.t(), scale_a, scale_b, out_dtype=torch.bfloat16, use_fast_accum=True), device
        )
    except (RuntimeError, ValueError):
        return None


def best_seconds(work: Callable[[], object], device: torch.device, rounds: int = 10) -> float:
    """The shortest time of some work, after one round that does not count."""
    work()
    return min(seconds_of(work, device) for _ in range(rounds))


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of some work, by the device's own clock if it has one."""
    if device.type != "cuda":
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def main() -> None:
    """Print the ceilings as JSON; THREADS of 0 leaves their number to torch."""
    device, dtype, threads = sys.argv[1:4]
    if int(threads):
        torch.set_num_threads(int(threads))
    print(json.dumps(asdict(measure_ceilings(torch.device(device), getattr(torch, dtype)))))


if __name__ == "__main__":
    main()
