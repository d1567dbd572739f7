"""Products of a few rows with a weight, on CUDA: what a decoding step of few sequences does most of its time.

The weight `[N, K]` is read once, 2·N·K bytes in bf16, and that is the whole cost: the rows are small and stay in the
GPU's caches. One row is multiplied by plain arithmetic, whose loads go to registers; two to sixteen by matrix units,
which take sixteen at once anyway.
"""

import functools

import torch
import triton
import triton.language as tl

from engine.kernels.launches import launch, tiles_of
from engine.kernels.reference import FEW_ROWS
from engine.kernels.triton_dependent import await_previous

ONE_ROW_SHAPES = ((8, 512, 4), (4, 1024, 4), (8, 1024, 8), (4, 512, 2))
"""Outputs that a program takes, numbers of each that it reads at once, warps. None was best for all sizes."""
FEW_ROWS_SHAPES = ((64, 128, 4),)
STAGES, FEWER_STAGES = 6, 5
SMALLER = ((8, 6), (8, 9), (12, 0))
"""Capabilities whose blocks have 99 KiB of shared memory at most, which six stages do not fit into."""


@triton.jit
def one_row_kernel(
    x, weight, bias, out, num_outputs, width,
    BIAS: tl.constexpr, OUTPUTS: tl.constexpr, TILE: tl.constexpr, DEPENDENT: tl.constexpr = False,
):  # fmt: skip
    """Grid (tiles of outputs). See `small_product`."""
    await_previous(DEPENDENT)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_output = output < num_outputs
    total = tl.zeros([OUTPUTS, TILE], tl.float32)
    row = weight + output.to(tl.int64)[:, None] * width
    for base in range(0, width, TILE):
        at = base + tl.arange(0, TILE)
        real = at < width
        numbers = tl.load(
            row + at[None, :], mask=is_output[:, None] & real[None, :], other=0.0, eviction_policy="evict_first"
        )
        total += numbers.to(tl.float32) * tl.load(x + at, mask=real, other=0.0).to(tl.float32)[None, :]
    result = tl.sum(total, 1)
    if BIAS:
        result += tl.load(bias + output, mask=is_output, other=0.0).to(tl.float32)
    tl.store(out + output, result.to(out.dtype.element_ty), mask=is_output)


@triton.jit(do_not_specialize=("num_rows",))
def few_rows_kernel(
    x, weight, bias, out, num_rows, num_outputs, width,
    BIAS: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):  # fmt: skip
    """Grid (tiles of outputs). See `small_product`."""
    await_previous(DEPENDENT)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.arange(0, ROWS)
    is_output, is_row = output < num_outputs, row < num_rows
    total = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for base in range(0, width, TILE):
        at = base + tl.arange(0, TILE)
        real = at < width
        numbers = tl.load(
            weight + output.to(tl.int64)[:, None] * width + at[None, :], mask=is_output[:, None] & real[None, :],
            other=0.0, eviction_policy="evict_first",
        )  # fmt: skip
        values = tl.load(x + row[None, :] * width + at[:, None], mask=is_row[None, :] & real[:, None], other=0.0)
        total = tl.dot(numbers, values, total, input_precision=PRECISION)
    if BIAS:
        total += tl.load(bias + output, mask=is_output, other=0.0).to(tl.float32)[:, None]
    places = out + row[None, :] * num_outputs + output[:, None]
    tl.store(places, total.to(out.dtype.element_ty), mask=is_output[:, None] & is_row[None, :])


def shapes_for(rows: int) -> tuple[tuple[int, int, int], ...]:
    """The launch shapes worth trying for so many rows."""
    return ONE_ROW_SHAPES if rows == 1 else FEW_ROWS_SHAPES


def stages_for(capability: tuple[int, int]) -> int:
    """How many tiles are on their way at once, for products of several rows."""
    return FEWER_STAGES if capability in SMALLER else STAGES


@functools.cache
def _stages(device: torch.device) -> int:
    return stages_for(torch.cuda.get_device_capability(device)) if device.type == "cuda" else STAGES


def small_product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, shape: tuple[int, ...]
) -> torch.Tensor:
    """x `[R, K]` with weight `[N, K]` and bias `[N]`: `[R, N]`. R up to `FEW_ROWS`; contiguous, of one dtype.

    Sums are in fp32. `shape` is one of `shapes_for(R)`.
    """
    rows, width = x.shape
    num_outputs = weight.shape[0]
    assert 1 <= rows <= FEW_ROWS
    outputs, tile, num_warps = shape
    out = torch.empty(rows, num_outputs, dtype=x.dtype, device=x.device)
    grid = (tiles_of(num_outputs, outputs),)
    added = x if bias is None else bias
    options = {"BIAS": bias is not None, "OUTPUTS": outputs, "TILE": tile, "num_warps": num_warps}
    if rows == 1:
        launch(one_row_kernel, grid, x, weight, added, out, num_outputs, width, **options)
    else:
        precision = "ieee" if x.dtype == torch.float32 else "tf32"
        launch(
            few_rows_kernel, grid, x, weight, added, out, rows, num_outputs, width,
            ROWS=FEW_ROWS, PRECISION=precision, num_stages=_stages(x.device), **options,
        )  # fmt: skip
    return out
