"""The experts of a mixture on CUDA: five launches for all of a layer's, six in FP8, none of which asks the host.

Pairs of a token and one of its experts are put in order by expert; of each expert's rows a tile is multiplied with its
weights, gate and up first, then down; and each token's K rows are summed by their weights in fp32. How many rows an
expert has is only known on the device: a launch has programs for the worst case, and those without a tile end at once,
so it can be recorded. Nothing is added up atomically: the same tokens give the same bits.

Up to 64 tokens, when a token chooses no expert twice, every expert's rows are one tile: of N hit experts the weights,
3·N·I·H numbers, are read once, and that is what a decoding step costs. Beside them go the pairs: T·K·(3·I + 2·H).

In FP8 weights are e4m3 with one scale for 128 by 128 numbers, and activations have one for 128 numbers of a token
(DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, section 3.3): sums of 128 inputs are scaled and added up in fp32.
"""

import torch
import triton
import triton.language as tl

from engine.kernels.launches import launch, power_of_2, tiles_of
from engine.kernels.reference import FP8_BLOCK
from engine.kernels.triton_fp8 import FP8_SHAPES, ProductShape, quantize_groups
from engine.kernels.triton_layer import activate_mul

PLACE_TILE = 4096
SUM_TILE = 1024


SHAPES = {
    16: ProductShape(16, 32, 128, 4, 5),
    32: ProductShape(32, 64, 128, 4, 4),
    64: ProductShape(64, 64, 64, 4, 4),
    128: ProductShape(128, 128, 64, 8, 3),
}
"""By rows of a tile, in 16 bits; `FP8_SHAPES` in FP8."""


def rows_for(tokens: int, choices: int, num_experts: int) -> int:
    """Rows of a tile: all that one expert can have, up to 64; beyond, about what it has on average."""
    if tokens <= 64:
        return max(16, power_of_2(tokens))
    return 64 if tokens * choices <= 64 * num_experts else 128


@triton.jit(do_not_specialize=("num_pairs",))
def place_rows_kernel(index, counts, order, num_pairs, TILE: tl.constexpr):
    """Grid (experts). See `place_rows`."""
    expert = tl.program_id(0)
    at = tl.arange(0, TILE)
    earlier = tl.zeros([TILE], tl.int32)
    own = tl.zeros([TILE], tl.int32)
    for base in range(0, num_pairs, TILE):
        chosen = tl.load(index + base + at, mask=base + at < num_pairs, other=1 << 30)
        earlier += (chosen < expert).to(tl.int32)
        own += (chosen == expert).to(tl.int32)
    tl.store(counts + expert, tl.sum(own, 0))
    place = tl.sum(earlier, 0)
    for base in range(0, num_pairs, TILE):
        chosen = tl.load(index + base + at, mask=base + at < num_pairs, other=1 << 30)
        is_own = chosen == expert
        inside = tl.cumsum(is_own.to(tl.int32), 0)
        tl.store(order + place + inside - 1, base + at, mask=is_own)
        place += tl.sum(is_own.to(tl.int32), 0)


def place_rows(index: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of experts chosen, index `[T, K]`, contiguous: rows of each expert `[E]`, and pairs in order `[T·K]`, int32.

    Pair p is token p // K with its expert p % K. They are ordered by expert, and those of one expert by number.
    """
    counts = torch.empty(num_experts, dtype=torch.int32, device=index.device)
    order = torch.empty(index.numel(), dtype=torch.int32, device=index.device)
    tile = min(PLACE_TILE, max(32, power_of_2(index.numel())))
    warps = max(1, min(8, tile // 256))
    launch(place_rows_kernel, (num_experts,), index, counts, order, index.numel(), TILE=tile, num_warps=warps)
    return counts, order


@triton.jit
def _rows_of_tile(counts, tile, num_experts, EXPERTS_PAD: tl.constexpr, ROWS: tl.constexpr):
    """The expert of a tile of rows, its first row, and that behind the expert's last.

    The expert is `num_experts` or more where there are not so many tiles.
    """
    number = tl.arange(0, EXPERTS_PAD)
    count = tl.load(counts + number, mask=number < num_experts, other=0)
    ends = tl.cumsum((count + ROWS - 1) // ROWS, 0)
    is_before = ends <= tile
    expert = tl.sum(is_before.to(tl.int32), 0)
    first = tl.sum(tl.where(is_before, count, 0), 0)
    end = first + tl.sum(tl.where(number == expert, count, 0), 0)
    return expert, first + (tile - tl.max(tl.where(is_before, ends, 0), 0)) * ROWS, end


@triton.jit
def grouped_product_kernel(
    x, x_scale, weight, weight_scale, counts, order, out, row_width, part_outputs, num_experts,
    CHOICES: tl.constexpr, PARTS: tl.constexpr, FROM_TOKENS: tl.constexpr, FP8: tl.constexpr, EVEN: tl.constexpr,
    EXPERTS_PAD: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of outputs, tiles of rows). See `grouped_product`."""
    expert, start, end = _rows_of_tile(counts, tl.program_id(1), num_experts, EXPERTS_PAD, ROWS)
    if expert >= num_experts:
        return
    row = start + tl.arange(0, ROWS)
    is_row = row < end
    pair = tl.load(order + row, mask=is_row, other=0)
    source = (pair // CHOICES if FROM_TOKENS else row).to(tl.int64)
    target = (row if FROM_TOKENS else pair).to(tl.int64)
    tiles = tl.cdiv(part_outputs, OUTPUTS)
    part = tl.program_id(0) // tiles
    first = tl.program_id(0) % tiles * OUTPUTS
    output = first + tl.arange(0, OUTPUTS)
    is_output = output < part_outputs
    number = (expert.to(tl.int64) * PARTS + part) * part_outputs + output
    inputs = tl.arange(0, TILE)
    if FP8:
        blocks = tl.cdiv(row_width, BLOCK)
        block_row = (expert * PARTS + part) * tl.cdiv(part_outputs, BLOCK) + first // BLOCK
        weight_scale += block_row.to(tl.int64) * blocks
        x_scale += source * blocks
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for base in range(0, row_width, TILE):
        at = base + inputs
        from_x, from_weight = is_row[:, None], is_output[None, :]
        if not EVEN:
            from_x, from_weight = from_x & (at < row_width)[None, :], from_weight & (at < row_width)[:, None]
        values = tl.load(x + source[:, None] * row_width + at[None, :], mask=from_x, other=0.0)
        numbers = tl.load(weight + number[None, :] * row_width + at[:, None], mask=from_weight, other=0.0)
        if FP8:
            scale = tl.load(x_scale + base // BLOCK, mask=is_row, other=0.0) * tl.load(weight_scale + base // BLOCK)
            total += tl.dot(values, numbers) * scale[:, None]
        else:
            total = tl.dot(values, numbers, total, input_precision=PRECISION)
    places = out + target[:, None] * (PARTS * part_outputs) + part * part_outputs + output[None, :]
    tl.store(places, total.to(out.dtype.element_ty), mask=is_row[:, None] & is_output[None, :])


def grouped_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    placed: tuple[torch.Tensor, torch.Tensor],
    *,
    choices: int,
    dtype: torch.dtype,
    from_tokens: bool,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Rows with the weight of their expert, `[E, N, width]`: `[T·K, N]` in `dtype`, with K = `choices`.

    `from_tokens`: x `[T, width]` are tokens, and the result is in the order of `placed`, which is what `place_rows`
    gives; N is two parts, gate and up. Else x `[T·K, width]` is in that order, and the result in that of the pairs. Of
    e4m3, `scales` are those of x `[rows, ⌈width/128⌉]` and of the weight `[E, ⌈N/128⌉, ⌈width/128⌉]`, where each part
    has blocks of its own. Contiguous; sums are in fp32.
    """
    counts, order = placed
    num_experts, outputs, width = weight.shape
    pairs, parts = order.numel(), 2 if from_tokens else 1
    rows = rows_for(pairs // choices, choices, num_experts)
    shape = (SHAPES if scales is None else FP8_SHAPES)[rows]
    out = torch.empty(pairs, outputs, dtype=dtype, device=x.device)
    hit = min(pairs, num_experts)  # the most tiles: a row each in as many experts as there are, the rest full
    grid = (parts * tiles_of(outputs // parts, shape.outputs), hit + (pairs - hit) // rows)
    x_scale, weight_scale = (x, weight) if scales is None else scales
    launch(
        grouped_product_kernel, grid,
        x, x_scale, weight, weight_scale, counts, order, out, width, outputs // parts, num_experts,
        CHOICES=choices, PARTS=parts, FROM_TOKENS=from_tokens, FP8=scales is not None, EVEN=width % shape.tile == 0,
        EXPERTS_PAD=power_of_2(num_experts), ROWS=rows, OUTPUTS=shape.outputs, TILE=shape.tile,
        BLOCK=FP8_BLOCK, PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        num_warps=shape.num_warps, num_stages=shape.num_stages,
    )  # fmt: skip
    return out


@triton.jit
def sum_rows_kernel(pairs, weights, out, dim, CHOICES: tl.constexpr, TILE: tl.constexpr):
    """Grid (tokens, tiles). See `sum_rows`."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    real = column < dim
    total = tl.zeros([TILE], tl.float32)
    for choice in range(CHOICES):
        pair = token * CHOICES + choice
        row = tl.load(pairs + pair * dim + column, mask=real, other=0.0)
        total += row.to(tl.float32) * tl.load(weights + pair).to(tl.float32)
    tl.store(out + token * dim + column, total.to(out.dtype.element_ty), mask=real)


def sum_rows(pairs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The rows `[T·K, H]` of each token times its weights `[T, K]`, contiguous; `[T, H]`, summed in fp32."""
    (tokens, choices), dim = weights.shape, pairs.shape[1]
    out = torch.empty(tokens, dim, dtype=pairs.dtype, device=pairs.device)
    launch(
        sum_rows_kernel, (tokens, tiles_of(dim, SUM_TILE)), pairs, weights, out, dim,
        CHOICES=choices, TILE=SUM_TILE, num_warps=4,
    )  # fmt: skip
    return out


def run_experts(
    x: torch.Tensor,
    index: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    activation: str,
) -> torch.Tensor:
    """Experts of x `[T, H]`: chosen by index `[T, K]`, weighed by weights `[T, K]`; `[T, H]`.

    gate_up `[E, 2·I, H]` and down `[E, H, I]` in the dtype of x. Contiguous.
    """
    placed, choices = place_rows(index, len(down)), index.shape[1]
    inner = grouped_product(x, gate_up, placed, choices=choices, dtype=x.dtype, from_tokens=True)
    inner = activate_mul(inner, activation)
    return sum_rows(grouped_product(inner, down, placed, choices=choices, dtype=x.dtype, from_tokens=False), weights)


def run_fp8_experts(
    x: torch.Tensor,
    index: torch.Tensor,
    weights: torch.Tensor,
    gate_up: tuple[torch.Tensor, torch.Tensor],
    down: tuple[torch.Tensor, torch.Tensor],
    activation: str,
) -> torch.Tensor:
    """`run_experts` of weights in e4m3, each with its scales: see `grouped_product`."""
    placed, choices = place_rows(index, len(down[0])), index.shape[1]
    numbers, scale = quantize_groups(x)
    inner = grouped_product(
        numbers, gate_up[0], placed, choices=choices, dtype=x.dtype, from_tokens=True, scales=(scale, gate_up[1])
    )
    numbers, scale = quantize_groups(inner, activation)
    pairs = grouped_product(
        numbers, down[0], placed, choices=choices, dtype=x.dtype, from_tokens=False, scales=(scale, down[1])
    )
    return sum_rows(pairs, weights)
