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

from engine.device.ranks import Ranks
from engine.device.timing import best_device_seconds, recorded
from engine.kernels.reference import FEW_ROWS
from engine.kernels.triton_fp8 import FEW_ROWS_SHAPES, few_rows_product, quantize_rows
from engine.kernels.triton_linear import shapes_for, small_product
from engine.models.cuda_layer import CudaDecoderLayer
from engine.models.fp8 import CHECK_TOLERANCE, Fp8Linear, spread_error
from engine.models.fusion import Undo
from engine.models.split import RowParallel, VocabHead

logger = logging.getLogger(__name__)

GAIN = 0.98
"""Our kernel serves where it takes less than this of cuBLAS's time."""
READ_BYTES = 2**28
"""Weights that are read in one timed round: well above what a GPU's caches hold."""
LAUNCHES, ROUNDS = 12, 3
Size = tuple[int, int, bool]
"""Outputs, inputs, and whether in FP8."""
Shape = tuple[int, ...]
Measured = dict[int, Shape | None]
"""By rows measured (1, 8): the launch shape that serves (of `_shapes`); None for cuBLAS."""
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
        if shape is None or not 1 <= rows <= FEW_ROWS:
            return F.linear(x, self.weight, self.bias)
        return small_product(x.view(rows, self.in_features), self.weight, self.bias, shape).view(
            *x.shape[:-1], self.out_features
        )


@torch.inference_mode()
def use_small_products(model: Any, undo: Undo, ranks: Ranks | None = None, timer: Timer | None = None) -> int:
    """Put a `SmallProduct` in the place of the linears in CUDA layers, and of the head; the number replaced.

    Of `ranks`, whose linears are of the same sizes, the first measures for all.
    Without a `timer` the GPU's clock decides; under Triton's interpreter, where speed means nothing, all are replaced.
    """
    places = _places(model)
    by_size: dict[Size, list[nn.Linear | Fp8Linear]] = {}
    for parent, name in places:
        linear = getattr(parent, name)
        by_size.setdefault(_size(linear), []).append(linear)
    chosen: dict[Size, Measured]
    if timer is None and os.environ.get("TRITON_INTERPRET") == "1":
        chosen = {size: {rows: _shapes(linears[0], rows)[0] for rows in (1, 8)} for size, linears in by_size.items()}
    else:
        chosen = {size: _agreed(linears, timer or graph_seconds, ranks) for size, linears in by_size.items()}
    count = 0
    for parent, name in places:
        linear = getattr(parent, name)
        measured = chosen[_size(linear)]
        if all(shape is None for shape in measured.values()):
            continue
        if isinstance(linear, Fp8Linear):
            linear.few_rows = measured
            undo.append(partial(setattr, linear, "few_rows", {}))
        else:
            setattr(parent, name, SmallProduct(linear, measured))
            undo.append(partial(setattr, parent, name, linear))
        count += 1
    return count


def _size(linear: nn.Linear | Fp8Linear) -> Size:
    return linear.out_features, linear.in_features, isinstance(linear, Fp8Linear)


def _shapes(linear: nn.Linear | Fp8Linear, rows: int) -> tuple[Shape, ...]:
    """The launch shapes worth trying for so many rows."""
    return FEW_ROWS_SHAPES if isinstance(linear, Fp8Linear) else shapes_for(rows)


def _works(linears: list[nn.Linear | Fp8Linear], x: torch.Tensor, shape: Shape | None) -> list[Callable[[], object]]:
    """The products of x with all of them, in a launch shape; None for those that are there already."""
    if shape is None:
        return [partial(linear, x) for linear in linears]
    return [partial(_product, linear, x, shape) for linear in linears]


def _product(linear: nn.Linear | Fp8Linear, x: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Ours."""
    if isinstance(linear, Fp8Linear):
        return few_rows_product(quantize_rows(x), linear.weight, linear.scale, linear.bias, shape)
    return small_product(x, linear.weight, linear.bias, shape)


def _agreed(linears: list[nn.Linear | Fp8Linear], timer: Timer, ranks: Ranks | None) -> Measured:
    if ranks is None:
        return measure(linears, timer)
    measured: Measured = {1: None, 8: None}
    if ranks.leads:
        try:
            measured = measure(linears, timer)
        except Exception:  # the others wait to hear of it
            logger.warning("products of few rows cannot be measured; cuBLAS serves", exc_info=True)
    measured = ranks.agreed(measured if ranks.leads else None, Measured)
    for rows, shape in measured.items():  # where nothing was measured, nothing was built
        if shape is not None:
            _product(linears[0], _rows_for(linears[0], rows), shape)
    return measured


def _places(model: Any) -> list[tuple[nn.Module, str]]:
    """Where linears stand that decoding steps go through: parents and names."""
    found: list[tuple[nn.Module, str]] = []
    for module in model.modules():
        if isinstance(module, CudaDecoderLayer):
            found += [(module, name) for name in ("qkv", "output", "gate_up", "down")]
    found += [(model, name) for name, child in model.named_children() if child is model.get_output_embeddings()]
    found = [_inside(parent, name) for parent, name in found]
    return [(parent, name) for parent, name in found if type(getattr(parent, name)) in (nn.Linear, Fp8Linear)]


def _inside(parent: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Where a linear stands itself, if a module of ranks is around it."""
    child = getattr(parent, name)
    if isinstance(child, RowParallel):
        return child, "linear"
    return (child, "lm_head") if isinstance(child, VocabHead) else (parent, name)


def measure(linears: list[nn.Linear | Fp8Linear], timer: Timer) -> Measured:
    """What serves linears of one size."""
    first = linears[0]
    turns = max(1, min(len(linears), READ_BYTES // first.weight.nbytes + 1))
    used = [linears[number % turns] for number in range(max(turns, LAUNCHES))]
    measured: Measured = {}
    for rows in (1, 8):
        x = _rows_for(first, rows)
        best = GAIN * timer(_works(used, x, None))
        measured[rows] = None
        for shape in _shapes(first, rows):
            try:
                if not spread_error(_product(first, x, shape), first(x)) <= CHECK_TOLERANCE:
                    logger.warning("products of %d with %d are wrong in shape %s", *first.weight.shape[::-1], shape)
                    continue
                seconds = timer(_works(used, x, shape))
            except Exception:  # a shape may need more than the GPU has, or the compiler may refuse it
                logger.debug("a product of shape %s cannot be timed", shape, exc_info=True)
                continue
            if seconds < best:
                best, measured[rows] = seconds, shape
    logger.info("products of %d with %d: %s", first.in_features, first.out_features, measured)
    return measured


def _rows_for(linear: nn.Linear | Fp8Linear, rows: int) -> torch.Tensor:
    """Something to multiply with."""
    dtype = torch.bfloat16 if isinstance(linear, Fp8Linear) else linear.weight.dtype
    return torch.randn(rows, linear.in_features, device=linear.weight.device).to(dtype)


def graph_seconds(works: list[Callable[[], object]]) -> float:
    """Seconds of some launches on the GPU, recorded, so that the host's work does not count."""
    works[0]()  # builds the kernel, and raises where it does not fit
    torch.cuda.synchronize()
    return best_device_seconds(recorded(lambda: [work() for work in works]).replay, ROUNDS)
