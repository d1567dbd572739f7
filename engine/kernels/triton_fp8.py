"""Activations to FP8 on CUDA, with a scale for each token or for 128 numbers of one, and products of the latter.

A row `[K]` is read once (2·K bytes in bf16), and K bytes and its scales are written. FP8 here is e4m3 (Micikevicius et
al., "FP8 Formats for Deep Learning", 2022): 3 bits of mantissa, 448 the largest number, no infinity. Weights that have
a scale for 128 by 128 numbers are multiplied as DeepSeek-V3 was trained (DeepSeek-AI, "DeepSeek-V3 Technical Report",
2024, section 3.3): sums of 128 inputs are scaled and added up in fp32.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from engine.kernels.launches import launch, power_of_2, tiles_of
from engine.kernels.reference import FEW_ROWS, FP8_BLOCK, SMALLEST_ROW, Rounded
from engine.kernels.triton_dependent import await_previous
from engine.kernels.triton_layer import activated, warps

GROUPS = 8
"""Groups of 128 numbers that a program turns into FP8."""


class ProductShape(NamedTuple):
    """How a product is cut: rows and outputs of a tile, inputs that are read at once, warps, stages."""

    rows: int
    outputs: int
    tile: int
    num_warps: int
    num_stages: int


FP8_SHAPES = {
    16: ProductShape(16, 32, FP8_BLOCK, 4, 6),
    32: ProductShape(32, 64, FP8_BLOCK, 4, 5),
    64: ProductShape(64, 64, FP8_BLOCK, 4, 4),
    128: ProductShape(128, 128, FP8_BLOCK, 8, 3),
}
"""By rows of a tile. A tile of inputs is a block's, and one of outputs lies within a block."""
FEW_ROWS_SHAPES = ((32, 256, 4, 6), (64, 128, 4, 6), (64, 256, 4, 4), (16, 512, 4, 6))
"""Outputs that a program takes, numbers of each that it reads at once, warps, stages. Few outputs want small tiles, so
that all processors have some."""


@triton.jit
def put_rounded(value, out, scales, row, column, dim, SMALLEST: tl.constexpr):
    """Store a row in fp32, zero where it is padded, as e4m3 and its scale."""
    largest = tl.maximum(tl.max(tl.abs(value), 0), SMALLEST)
    # One exact quotient, then products: the same bits on every device.
    value = value * tl.div_rn(448.0, largest)
    # Not by minimum and maximum, which would make a number of a NaN.
    value = tl.where(value > 448.0, 448.0, tl.where(value < -448.0, -448.0, value))
    tl.store(out + row * dim + column, value.to(tl.float8e4nv), mask=column < dim)
    tl.store(scales + row, tl.div_rn(largest, 448.0))


@triton.jit
def quantize_rows_kernel(
    x, out, scales, dim, SMALLEST: tl.constexpr, DIM_PAD: tl.constexpr, DEPENDENT: tl.constexpr = False
):
    """Grid (rows). See `quantize_rows`."""
    await_previous(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, DIM_PAD)
    value = tl.load(x + row * dim + column, mask=column < dim, other=0.0).to(tl.float32)
    put_rounded(value, out, scales, row, column, dim, SMALLEST)


def quantize_rows(x: torch.Tensor) -> Rounded:
    """x `[T, K]` contiguous, fp32, fp16 or bf16, with a scale for each row. A NaN stays one."""
    rows, dim = x.shape
    rounded, pad = no_rows(rows, dim, x), power_of_2(dim)
    launch(
        quantize_rows_kernel, (rows,), x, rounded.numbers, rounded.scales, dim,
        SMALLEST=SMALLEST_ROW, DIM_PAD=pad, num_warps=warps(pad),
    )  # fmt: skip
    return rounded


def no_rows(rows: int, dim: int, like: torch.Tensor) -> Rounded:
    """Room for rows of the dtype of `like`."""
    numbers = torch.empty(rows, dim, dtype=torch.float8_e4m3fn, device=like.device)
    return Rounded(numbers, torch.empty(rows, 1, dtype=torch.float32, device=like.device), like.dtype)


@triton.jit
def quantize_groups_kernel(
    x, out, scales, dim,
    ACTIVATE: tl.constexpr, GELU: tl.constexpr, SMALLEST: tl.constexpr, BLOCK: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Grid (rows, tiles of groups). See `quantize_groups`."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    column = group[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    real = column < dim
    if ACTIVATE:
        gate = tl.load(x + row * 2 * dim + column, mask=real, other=0.0)
        up = tl.load(x + row * 2 * dim + dim + column, mask=real, other=0.0)
        value = activated(gate, up, GELU).to(tl.float32)
    else:
        value = tl.load(x + row * dim + column, mask=real, other=0.0).to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(value), 1), SMALLEST)
    most = tl.full([GROUPS], 448.0, tl.float32)
    value = value * tl.div_rn(most, largest)[:, None]
    # Not by minimum and maximum, which would make a number of a NaN.
    value = tl.where(value > 448.0, 448.0, tl.where(value < -448.0, -448.0, value))
    tl.store(out + row * dim + column, value.to(tl.float8e4nv), mask=real)
    groups = tl.cdiv(dim, BLOCK)
    tl.store(scales + row * groups + group, tl.div_rn(largest, most), mask=group < groups)


def quantize_groups(x: torch.Tensor, activation: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """x `[T, K]` contiguous → e4m3 `[T, K]` and fp32 scales `[T, ⌈K/128⌉]`, of 128 numbers each; a NaN stays one.

    With an `activation` of `activate_mul`, x `[T, 2·K]` are gate and up.
    """
    rows, dim = x.shape[0], x.shape[1] // (1 if activation is None else 2)
    groups = tiles_of(dim, FP8_BLOCK)
    out = torch.empty(rows, dim, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, groups, dtype=torch.float32, device=x.device)
    launch(
        quantize_groups_kernel, (rows, tiles_of(groups, GROUPS)), x, out, scales, dim,
        ACTIVATE=activation is not None, GELU=activation == "gelu_tanh", SMALLEST=SMALLEST_ROW, BLOCK=FP8_BLOCK,
        GROUPS=GROUPS, num_warps=4,
    )  # fmt: skip
    return out, scales


@triton.jit(do_not_specialize=("num_rows",))
def few_rows_kernel(
    x, x_scale, weight, scale, bias, out, num_rows, num_outputs, width,
    BIAS: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, TILE: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):  # fmt: skip
    """Grid (tiles of outputs). See `few_rows_product`."""
    await_previous(DEPENDENT)
    first = tl.program_id(0) * OUTPUTS
    output, row = tl.arange(0, OUTPUTS), tl.arange(0, ROWS)
    is_output, is_row = first + output < num_outputs, row < num_rows
    weight += first.to(tl.int64) * width
    total = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for base in range(0, width, TILE):
        at = base + tl.arange(0, TILE)
        from_weight, from_x = is_output[:, None], is_row[None, :]
        if not EVEN:
            from_weight, from_x = from_weight & (at < width)[None, :], from_x & (at < width)[:, None]
        numbers = tl.load(
            weight + output[:, None] * width + at[None, :], mask=from_weight, other=0.0, eviction_policy="evict_first"
        )
        values = tl.load(x + row[None, :] * width + at[:, None], mask=from_x, other=0.0)
        total = tl.dot(numbers, values, total)
    total *= tl.load(scale + first + output, mask=is_output, other=0.0)[:, None]
    total *= tl.load(x_scale + row, mask=is_row, other=0.0)[None, :]
    if BIAS:
        total += tl.load(bias + first + output, mask=is_output, other=0.0).to(tl.float32)[:, None]
    places = out + row[None, :] * num_outputs + first + output[:, None]
    tl.store(places, total.to(out.dtype.element_ty), mask=is_output[:, None] & is_row[None, :])


def few_rows_product(
    x: Rounded, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, shape: tuple[int, ...]
) -> torch.Tensor:
    """x of rows `[T, K]` with weight e4m3 `[N, K]`: `[T, N]` in the dtype that x had.

    T up to `FEW_ROWS`; `shape` is one of `FEW_ROWS_SHAPES`; scale fp32 `[N]`, bias `[N]` of any dtype. Contiguous. Sums
    are in fp32, but that Hopper's units for 64 outputs keep fewer bits of it, as they do for `use_fast_accum`. The
    weight's N·K bytes are what it costs.
    """
    (rows, width), num_outputs = x.numbers.shape, len(weight)
    assert 1 <= rows <= FEW_ROWS
    outputs, tile, num_warps, num_stages = shape
    out = torch.empty(rows, num_outputs, dtype=x.dtype, device=weight.device)
    launch(
        few_rows_kernel, (tiles_of(num_outputs, outputs),),
        x.numbers, x.scales, weight, scale, scale if bias is None else bias, out, rows, num_outputs, width,
        BIAS=bias is not None, EVEN=width % tile == 0, ROWS=FEW_ROWS, OUTPUTS=outputs, TILE=tile, num_warps=num_warps,
        num_stages=num_stages,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=("num_rows",))
def block_product_kernel(
    x, x_scale, weight, weight_scale, bias, out, num_rows, num_outputs, width,
    BIAS: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of outputs, tiles of rows). See `block_product`."""
    first, start = tl.program_id(0) * OUTPUTS, tl.program_id(1).to(tl.int64) * ROWS
    output, row, inputs = tl.arange(0, OUTPUTS), tl.arange(0, ROWS), tl.arange(0, BLOCK)
    is_output, is_row = first + output < num_outputs, start + row < num_rows
    blocks = tl.cdiv(width, BLOCK)
    # Only a tile's place is counted in 64 bits: numbers of such a width for each of its rows do not fit in registers.
    x += start * width
    x_scale += start * blocks
    weight += first.to(tl.int64) * width
    weight_scale += (first // BLOCK).to(tl.int64) * blocks
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for block in range(0, blocks):
        at = block * BLOCK + inputs
        from_x, from_weight = is_row[:, None], is_output[None, :]
        if not EVEN:
            from_x, from_weight = from_x & (at < width)[None, :], from_weight & (at < width)[:, None]
        values = tl.load(x + row[:, None] * width + at[None, :], mask=from_x, other=0.0)
        numbers = tl.load(weight + output[None, :] * width + at[:, None], mask=from_weight, other=0.0)
        scale = tl.load(x_scale + row * blocks + block, mask=is_row, other=0.0) * tl.load(weight_scale + block)
        total += tl.dot(values, numbers) * scale[:, None]
    if BIAS:
        total += tl.load(bias + first + output, mask=is_output, other=0.0).to(tl.float32)[None, :]
    places = out + start * num_outputs + row[:, None] * num_outputs + first + output[None, :]
    tl.store(places, total.to(out.dtype.element_ty), mask=is_row[:, None] & is_output[None, :])


def block_product(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """x `[T, K]`, turned into FP8 by `quantize_groups`, with weight e4m3 `[N, K]`: `[T, N]` in the dtype of x.

    scale is fp32 `[⌈N/128⌉, ⌈K/128⌉]`, bias `[N]` of any dtype. Contiguous; sums are in fp32.
    """
    numbers, x_scale = quantize_groups(x)
    (rows, width), num_outputs = x.shape, len(weight)
    shape = FP8_SHAPES[min(128, max(16, power_of_2(rows)))]
    out = torch.empty(rows, num_outputs, dtype=x.dtype, device=x.device)
    launch(
        block_product_kernel, (tiles_of(num_outputs, shape.outputs), tiles_of(rows, shape.rows)),
        numbers, x_scale, weight, scale, scale if bias is None else bias, out, rows, num_outputs, width,
        BIAS=bias is not None, EVEN=width % FP8_BLOCK == 0, ROWS=shape.rows, OUTPUTS=shape.outputs, BLOCK=FP8_BLOCK,
        num_warps=shape.num_warps, num_stages=shape.num_stages,
    )  # fmt: skip
    return out
