"""When a device has done its work, and what that takes by a GPU's own clock, without what it costs the host."""

from collections.abc import Callable

import torch


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def recorded(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A recording of work whose kernels are built. Raises what torch does where it cannot be recorded."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            work()
    except BaseException:
        torch.cuda.set_stream(stream)  # where recording breaks off, its own stays the current one
        raise
    return graph


def best_device_seconds(launch: Callable[[], object], rounds: int) -> float:
    """Of some rounds the fastest."""
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        launch()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return float(min(times))
