"""The experts of a layer alone: what they read and do, as a share of what the device reads and does at best.

`python -m bench.gpu.experts` tries launch shapes other than those that are used, one product at a time.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.costs import Ceilings
from engine.measuring.ceilings import best_seconds, measure_ceilings
from engine.models.experts import Fp8Experts, GroupedExperts

TOKENS = (1, 8, 64, 256, 2048)
REPEATS = 8
"""Layers' worth of choices in one measurement: at other experts each, so that none is in the device's caches."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """A layer's experts."""

    number: int
    inner: int
    hidden: int
    choices: int
    fp8: bool

    @property
    def expert_bytes(self) -> int:
        """Of one expert's weights."""
        return 3 * self.inner * self.hidden * (1 if self.fp8 else 2)

    @property
    def flops(self) -> float:
        """Of a token."""
        return 6.0 * self.choices * self.inner * self.hidden


MIXTURES = {
    "DeepSeek-R1, an eighth": Mixture(256, 256, 7168, 8, fp8=True),
    "DeepSeek-R1, an eighth, 16 bits": Mixture(256, 256, 7168, 8, fp8=False),
    "Qwen3-30B-A3B": Mixture(128, 768, 2048, 8, fp8=False),
    "Mixtral-8x7B": Mixture(8, 14336, 4096, 2, fp8=False),
}
SMALL = {
    "small": Mixture(8, 32, 48, 2, fp8=False),
    "small, FP8": Mixture(8, 32, 48, 2, fp8=True),
}
"""For a device that has no such kernels, so that the measurement can be tried."""


def expert_shares(device: torch.device, ceilings: Ceilings | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """By mixture and tokens of a step, as soon as measured: seconds of one layer's experts, and bytes a second."""
    is_cuda = device.type == "cuda"
    for name, mixture in (MIXTURES if is_cuda else SMALL).items():
        try:
            experts = make_experts(mixture, device)
        except Exception as error:  # the others still have their turn
            yield name, {"error": f"{type(error).__name__}: {error}"}
            continue
        for tokens in TOKENS if is_cuda else (1, 4):
            try:
                yield f"{name}, {tokens} tokens", measure(experts, mixture, tokens, device, ceilings)
            except Exception as error:
                yield f"{name}, {tokens} tokens", {"error": f"{type(error).__name__}: {error}"}


def make_experts(mixture: Mixture, device: torch.device) -> nn.Module:
    """Experts with random weights."""
    number, inner, hidden = mixture.number, mixture.inner, mixture.hidden
    shapes = ((number, 2 * inner, hidden), (number, hidden, inner))
    if not mixture.fp8:
        drawn = [torch.randn(shape, device=device, dtype=torch.bfloat16) * shape[2] ** -0.5 for shape in shapes]
        gate_up, down = (nn.Parameter(one, requires_grad=False) for one in drawn)
        return GroupedExperts(gate_up, down, "silu", uses_kernels=device.type == "cuda")
    numbers = [torch.randint(0, 0x70, shape, dtype=torch.uint8, device=device) for shape in shapes]  # no NaN is drawn
    rows, columns = -(-hidden // 128), -(-inner // 128)
    scales = [
        torch.full(shape, 1e-3, device=device) for shape in ((number, 2 * columns, rows), (number, rows, columns))
    ]
    gate_up, down = (one.view(torch.float8_e4m3fn) for one in numbers)
    return Fp8Experts(gate_up, scales[0], down, scales[1], "silu")


@torch.inference_mode()
def measure(
    experts: nn.Module, mixture: Mixture, tokens: int, device: torch.device, ceilings: Ceilings | None
) -> dict[str, Any]:
    """One layer's experts in a step of so many tokens; recorded on a GPU."""
    choices = [torch.rand(tokens, mixture.number, device=device).topk(mixture.choices).indices for _ in range(REPEATS)]
    weights = torch.rand(tokens, mixture.choices, device=device)
    x = torch.randn(tokens, mixture.hidden, device=device, dtype=torch.bfloat16)
    seconds = recorded_seconds([lambda index=index: experts(x, index, weights) for index in choices], device)
    hit = sum(len(index.unique()) for index in choices) / REPEATS
    read = hit * mixture.expert_bytes
    one: dict[str, Any] = {"microseconds": seconds * 1e6, "bytes_per_second": read / seconds, "experts_hit": hit}
    if ceilings is not None:
        rate = ceilings.fp8_flops if mixture.fp8 and ceilings.fp8_flops else ceilings.flops
        least = max(read / ceilings.bytes_per_second, tokens * mixture.flops / rate)
        one["share_of_ceiling"] = least / seconds
    return one


def recorded_seconds(works: list[Callable[[], object]], device: torch.device) -> float:
    """Seconds of one of several works, on average."""

    def launch() -> None:
        for work in works:
            work()

    if device.type != "cuda":
        return best_seconds(launch, device, 3) / len(works)
    launch()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    return best_seconds(graph.replay, device) / len(works)


def try_shapes(device: torch.device) -> Iterator[str]:
    """Other launch shapes for the tiles of rows that steps have, beside those that are used."""
    from engine.kernels import triton_experts, triton_fp8
    from engine.kernels.triton_experts import rows_for
    from engine.kernels.triton_fp8 import ProductShape

    ceilings = measure_ceilings(device)
    for name, mixture in MIXTURES.items():
        experts = make_experts(mixture, device)
        shapes = triton_fp8.FP8_SHAPES if mixture.fp8 else triton_experts.SHAPES
        for tokens in TOKENS:
            rows = rows_for(tokens, mixture.choices, mixture.number)
            used = shapes[rows]
            tiles = (128,) if mixture.fp8 else (64, 128)
            others = itertools.product((32, 64, 128), tiles, (4, 8), (2, 3, 4, 5, 6))
            for shape in (used, *(ProductShape(rows, *other) for other in others)):
                shapes[rows] = shape
                try:
                    one = measure(experts, mixture, tokens, device, ceilings)
                    said = f"{one['microseconds']:.1f} us, {one['share_of_ceiling']:.0%} of the ceiling"
                except Exception as error:  # a shape may need more than the GPU has
                    said = type(error).__name__
                yield f"{name}, {tokens} tokens, {tuple(shape)}{' (used)' if shape == used else ''}: {said}"
            shapes[rows] = used


def main() -> int:
    """Print what each launch shape takes; 2 without a GPU."""
    if not torch.cuda.is_available():
        print("bench.gpu.experts needs a CUDA GPU, and torch sees none")
        return 2
    for line in try_shapes(torch.device("cuda")):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
