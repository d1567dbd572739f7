"""Linears that multiply few rows by our own kernels, where those are faster on the GPU at hand than cuBLAS.

A decoding step of few sequences is mostly such products. What is faster is measured when a model is loaded, on its own
weights one after another, so that none of them is in the GPU's caches: by size of weight, for one row and for eight.
"""

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from engine.kernels.triton_linear import MOST_ROWS, shapes_for, small_product
from engine.models.cuda_layer import CudaDecoderLayer
from engine.models.fusion import Undo

logger = logging.getLogger(__name__)

GAIN = 0.98
"""Our kernel serves where it takes less than this of cuBLAS's time."""
READ_BYTES = 2**28
"""Weights that are read in one timed round: well above what a GPU's caches hold."""
LAUNCHES, ROUNDS = 12, 3
Shape = tuple[int, int, int]
Measured = dict[int, Shape | None]
"""By rows measured (1, 8): the launch shape that serves; None for cuBLAS."""
Timer = Callable[[list[Callable[[], object]]], float]


class SmallProduct(nn.Module):
    """A linear, the products of a few rows of which are ours."""

    def __init__(self, linear: nn.Linear, measured: Measured) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self._one, self._few = measured.get(1), measured.get(8)
        self.numerics = f"{self.in_features}x{self.out_features}:{self._one}:{self._few}"
        """What may change the last bits of a product: it was measured, so the next start may choose otherwise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x `[..., in]`, contiguous → `[..., out]`."""
        rows = x.numel() // self.in_features
        shape = self._one if rows == 1 else self._few
        if shape is None or not 1 <= rows <= MOST_ROWS:
            return F.linear(x, self.weight, self.bias)
        return small_product(x.view(rows, self.in_features), self.weight, self.bias, shape).view(
            *x.shape[:-1], self.out_features
        )


@torch.inference_mode()
def use_small_products(model: Any, undo: Undo, timer: Timer | None = None) -> int:
    """Put a `SmallProduct` in the place of the linears in CUDA layers, and of the head; the number replaced.

    Without a `timer` the GPU's clock decides; under Triton's interpreter, where speed means nothing, all are replaced.
    """
    places = _places(model)
    by_size: dict[tuple[int, int], list[nn.Linear]] = {}
    for parent, name in places:
        linear = getattr(parent, name)
        by_size.setdefault((linear.out_features, linear.in_features), []).append(linear)
    chosen: dict[tuple[int, int], Measured]
    if timer is None and os.environ.get("TRITON_INTERPRET") == "1":
        chosen = {size: {rows: shapes_for(rows)[0] for rows in (1, 8)} for size in by_size}
    else:
        chosen = {size: measure(linears, timer or graph_seconds) for size, linears in by_size.items()}
    count = 0
    for parent, name in places:
        linear = getattr(parent, name)
        measured = chosen[linear.out_features, linear.in_features]
        if any(shape is not None for shape in measured.values()):
            setattr(parent, name, SmallProduct(linear, measured))
            undo.append(partial(setattr, parent, name, linear))
            count += 1
    return count


def _places(model: Any) -> list[tuple[nn.Module, str]]:
    """Where plain linears stand that decoding steps go through: parents and names."""
    found: list[tuple[nn.Module, str]] = []
    for module in model.modules():
        if isinstance(module, CudaDecoderLayer):
            found += [(module, name) for name in ("qkv", "output", "gate_up", "down")]
    found += [(model, name) for name, child in model.named_children() if child is model.get_output_embeddings()]
    return [(parent, name) for parent, name in found if type(getattr(parent, name)) is nn.Linear]


def measure(linears: list[nn.Linear], timer: Timer) -> Measured:
    """What serves linears of one size."""
    first = linears[0]
    turns = max(1, min(len(linears), READ_BYTES // first.weight.nbytes + 1))
    used = [linears[number % turns] for number in range(max(turns, LAUNCHES))]
    measured: Measured = {}
    for rows in (1, 8):
        x = torch.randn(rows, first.in_features, device=first.weight.device).to(first.weight.dtype)
        best = GAIN * timer([partial(F.linear, x, linear.weight, linear.bias) for linear in used])
        measured[rows] = None
        for shape in shapes_for(rows):
            try:
                seconds = timer([partial(small_product, x, one.weight, one.bias, shape) for one in used])
            except Exception:  # a shape may need more than the GPU has, or the compiler may refuse it
                logger.debug("a product of shape %s cannot be timed", shape, exc_info=True)
                continue
            if seconds < best:
                best, measured[rows] = seconds, shape
    logger.info("products of %d with %d: %s", first.in_features, first.out_features, measured)
    return measured


def graph_seconds(works: list[Callable[[], object]]) -> float:
    """Seconds of some launches on the GPU, recorded, so that the host's work does not count."""
    works[0]()  # builds the kernel, and raises where it does not fit
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for work in works:
            work()
    times = []
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return float(min(times))
