"""What ranks pay to speak with each other: sums of activations and gathers of logits alone, eagerly and recorded.

`python -m bench.gpu.sums DIRECTORY RANK SIZE DEVICE` is one of the other ranks, which does what rank 0 does.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from engine.device.device import select_device
from engine.device.ranks import Ranks, check_room, join, leave
from engine.lifetime import child_environment, die_with_parent
from engine.measuring.ceilings import best_seconds

ROWS = (1, 8, 64, 256, 2048)
WIDTHS = (4096, 7168, 8192)
"""Hidden sizes of Llama-3.1-8B, DeepSeek-R1 and Llama-3.3-70B."""
VOCABULARY = 128256
SMALL = (1, 8), (64,), 320
"""Rows, widths and vocabulary on a CPU, so that the measurement can be tried."""
REPEATS = 20
"""Calls in one measurement."""


@contextmanager
def met(size: int, device_name: str) -> Iterator[Ranks]:
    """This process as rank 0 among processes of this module. Raises ConfigError where they have not got the room."""
    device = select_device(device_name)
    check_room(device, size)
    with tempfile.TemporaryDirectory(prefix="sums-") as directory:
        command = [sys.executable, "-m", "bench.gpu.sums", directory]
        others = [
            subprocess.Popen([*command, str(rank), str(size), device_name], env=child_environment())
            for rank in range(1, size)
        ]
        try:
            yield join(Path(directory), 0, size, device, lambda progress: None)
            for other in others:
                other.wait(60)
        finally:
            for other in others:
                other.kill()
                other.wait()


def costs_of_speaking(ranks: Ranks, link: float | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """By operation and size, as soon as measured: microseconds of one, and bytes a second that each rank sends.

    All ranks go through this. What a step does is recorded on a GPU; `link` is what a rank sends a second at best.
    """
    rows, widths, vocabulary = SMALL if ranks.device.type == "cpu" else (ROWS, WIDTHS, VOCABULARY)
    others = (ranks.size - 1) / ranks.size
    for width in widths:
        for number in rows:
            x = torch.zeros(number, width, dtype=torch.bfloat16, device=ranks.device)
            found = timed(lambda x=x: ranks.total(x), ranks.device)
            yield f"sum {number} x {width}", found | rates(2 * others * x.nbytes, found["microseconds"], link)
    for number in rows[:4]:
        part = -(-vocabulary // ranks.size)
        x = torch.zeros(number, part, dtype=torch.bfloat16, device=ranks.device)
        found = timed(lambda x=x: ranks.joined(x), ranks.device)
        sent = others * ranks.size * x.nbytes
        yield f"gather {number} x {vocabulary}", found | rates(sent, found["microseconds"], link)


def rates(sent: float, microseconds: float, link: float | None) -> dict[str, float]:
    """What so many bytes in so many microseconds mean."""
    found = {"bytes_per_second": sent / microseconds * 1e6}
    return found if link is None else found | {"share_of_ceiling": found["bytes_per_second"] / link}


def timed(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Microseconds of some work that all ranks do: as often on each of them."""

    def launch() -> None:
        for _ in range(REPEATS):
            work()

    eager = best_seconds(launch, device, 5) / REPEATS * 1e6
    if device.type != "cuda":
        return {"microseconds": eager}
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        launch()
    return {"microseconds": best_seconds(graph.replay, device) / REPEATS * 1e6, "eager_microseconds": eager}


@torch.inference_mode()
def main() -> int:
    """One of the other ranks."""
    die_with_parent()
    directory, rank, size, device_name = sys.argv[1:5]
    device = select_device(device_name, int(rank))
    ranks = join(Path(directory), int(rank), int(size), device, lambda progress: None)
    for _ in costs_of_speaking(ranks, None):
        pass
    if device.type == "cpu":
        leave()
    return 0


if __name__ == "__main__":
    code = main()
    os._exit(code)  # what waits for other ranks in destructors would wait for ever
