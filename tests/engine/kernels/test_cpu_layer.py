"""A whole quantised layer in one call, held to the bit against its operations one by one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.kernels.cpu import CpuKernels, load_kernels
from engine.kernels.cpu_layer import MAX_ROWS, LayerStep, QuantizedLayer, QuantizedLayerParts, Stretch
from engine.kernels.cpu_quantized import ACTIVATION_BITS, QuantizedProduct, Room, is_available, pack
from tests.engine.kernels.test_cpu_quantized import random_blocks, run_under_sanitizers

pytestmark = pytest.mark.skipif(not is_available(), reason="no C compiler here")
BLOCK_SIZE, NUM_BLOCKS = 16, 40


def product(numbers: tuple[int, ...], outputs: int, size: int, *, bias: bool = False) -> QuantizedProduct:
    """A linear of as many parts as formats, nearly alike in width."""
    widths = [outputs // len(numbers)] * (len(numbers) - 1)
    widths.append(outputs - sum(widths))
    weights = [
        pack(random_blocks(n, width, size, n), n, size, Room()) for n, width in zip(numbers, widths, strict=True)
    ]
    return QuantizedProduct(weights, torch.randn(outputs) if bias else None)


def parts_of(
    heads: int, kv_heads: int, dim: int, size: int, inner: int, numbers: tuple[int, ...]
) -> QuantizedLayerParts:
    torch.manual_seed(heads)
    return QuantizedLayerParts(
        qkv=product(numbers, (heads + 2 * kv_heads) * dim, size, bias=True),
        output=product(numbers[:1], size, heads * dim),
        gate_up=product(numbers, 2 * inner, size),
        down=product(numbers[-1:], size, inner),
        input_norm=torch.rand(size) + 0.5,
        mlp_norm=torch.rand(size) + 0.5,
        input_eps=1e-5,
        mlp_eps=1e-6,
        heads=heads,
        scaling=dim**-0.5,
        window=None,
    )


class Step:
    """Rows at random places of sequences of their own, with caches that hold something.

    `prompts` are (first row, rows, context length): those rows are the newest tokens of one sequence instead.
    """

    def __init__(self, rows: int, kv_heads: int, dim: int, prompts: tuple[tuple[int, int, int], ...] = ()) -> None:
        generator = torch.Generator().manual_seed(rows)
        lens = torch.randint(1, 2 * BLOCK_SIZE, (rows,), generator=generator, dtype=torch.int32)
        tables = torch.randint(0, NUM_BLOCKS, (rows, 2), generator=generator, dtype=torch.int32)
        last = lens.long() - 1
        # Each row writes a block of its own, which no other reads.
        own = NUM_BLOCKS + torch.arange(rows, dtype=torch.int32)
        tables[torch.arange(rows), last // BLOCK_SIZE] = own
        self.lens, self.tables = lens, tables
        self.slots = own.long() * BLOCK_SIZE + last % BLOCK_SIZE
        num_blocks = NUM_BLOCKS + rows
        self.stretches: list[Stretch] = []
        for first, count, context_len in prompts:
            blocks = num_blocks + torch.randperm(-(-context_len // BLOCK_SIZE), generator=generator)
            num_blocks += len(blocks)
            places = torch.arange(context_len - count, context_len)
            self.slots[first : first + count] = blocks[places // BLOCK_SIZE] * BLOCK_SIZE + places % BLOCK_SIZE
            self.stretches.append(Stretch(slice(first, first + count), blocks.int(), None, context_len))
        ends = [0, *(end for first, count, _ in prompts for end in (first, first + count)), rows]
        for start, end in zip(ends[::2], ends[1::2], strict=True):
            if end > start:
                self.stretches.append(Stretch(slice(start, end), tables[start:end], lens[start:end]))
        angles = torch.rand(rows, dim, generator=generator) * 6
        self.cos, self.sin = angles.cos(), angles.sin()
        shape = (kv_heads, num_blocks * BLOCK_SIZE, dim)
        self.k_cache, self.v_cache = (torch.randn(shape, generator=generator) for _ in range(2))

    def only(self, rows: slice) -> "Step":
        """Some of the rows, with caches of their own."""
        step = object.__new__(Step)
        for name in ("lens", "tables", "slots", "cos", "sin"):
            setattr(step, name, getattr(self, name)[rows].contiguous())
        step.stretches = [Stretch(slice(0, rows.stop - rows.start), step.tables, step.lens)]
        step.k_cache, step.v_cache = self.k_cache.clone(), self.v_cache.clone()
        return step


def whole(parts: QuantizedLayerParts, hidden: torch.Tensor, step: Step) -> torch.Tensor:
    residual = hidden.clone()
    layer_step = LayerStep(
        step.cos, step.sin, step.slots, step.stretches, num_slots=step.k_cache.shape[1], block_size=BLOCK_SIZE
    )
    QuantizedLayer(parts)(residual, layer_step, step.k_cache, step.v_cache)
    return residual


def attended(
    kernels: CpuKernels, parts: QuantizedLayerParts, q: torch.Tensor, step: Step, stretch: Stretch
) -> torch.Tensor:
    """The attention of a stretch's queries `[rows, heads, dim]`, by the operation for it."""
    if stretch.lens is None:
        return kernels.attend_prompt(
            q, step.k_cache, step.v_cache, stretch.tables, context_len=stretch.context_len, block_size=BLOCK_SIZE,
            scaling=parts.scaling, softcap=None, window=parts.window,
        )  # fmt: skip
    return kernels.paged_decode(
        q, step.k_cache, step.v_cache, stretch.tables, stretch.lens, block_size=BLOCK_SIZE, scaling=parts.scaling,
        softcap=None, window=parts.window,
    )  # fmt: skip


def one_by_one(kernels: CpuKernels, parts: QuantizedLayerParts, hidden: torch.Tensor, step: Step) -> torch.Tensor:
    residual = hidden.clone()
    qkv = parts.qkv(kernels.add_rms_norm(residual, None, parts.input_norm, parts.input_eps))
    kernels.rope_and_write(qkv, step.cos, step.sin, step.slots, step.k_cache, step.v_cache, parts.heads)
    dim = step.cos.shape[1]
    q = qkv[:, : parts.heads * dim].view(len(qkv), parts.heads, dim)
    found = torch.empty(q.shape)
    for stretch in step.stretches:
        found[stretch.rows] = attended(kernels, parts, q[stretch.rows], step, stretch)
    delta = parts.output(found.flatten(1))
    normed = kernels.add_rms_norm(residual, delta, parts.mlp_norm, parts.mlp_eps)
    return residual + parts.down(kernels.silu_mul(parts.gate_up(normed)))


SHAPES = [
    (9, 3, 64, 576, 1536, (3, 14)),
    (1, 1, 32, 32, 32, (8,)),
    (12, 2, 128, 256, 8960, (12, 12, 14)),
    (34, 2, 64, 2304, 288, (2, 8)),
    (6, 6, 96, 512, 1504, (6, 7)),
]
"""Heads, those of keys, their width, the stream's, the MLP's, formats; some sizes are no multiple of any chunk."""


@pytest.mark.parametrize(("heads", "kv_heads", "dim", "size", "inner", "numbers"), SHAPES, ids=str)
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("bits", ACTIVATION_BITS)
def test_a_layer_is_its_operations_to_the_bit(
    heads: int, kv_heads: int, dim: int, size: int, inner: int, numbers: tuple[int, ...], window: int | None, bits: int
) -> None:
    kernels = load_kernels(torch.float32)
    assert kernels is not None
    parts = replace(parts_of(heads, kv_heads, dim, size, inner, _fitting(numbers, size, inner)), window=window)
    for product in (parts.qkv, parts.output, parts.gate_up, parts.down):
        product.round_to(bits)
    for rows in (1, 2, 5, MAX_ROWS):
        step, other, hidden = Step(rows, kv_heads, dim), Step(rows, kv_heads, dim), torch.randn(rows, size)
        ours = whole(parts, hidden, step)
        assert torch.equal(ours, one_by_one(kernels, parts, hidden, other)) and ours.isfinite().all()
        assert torch.equal(step.k_cache, other.k_cache) and torch.equal(step.v_cache, other.v_cache)


PROMPTS = [
    (9, ((0, 9, 9),)),
    (12, ((4, 8, 6 * BLOCK_SIZE + 3),)),
    (MAX_ROWS, ((3, 1, 130), (4, 40, 40), (50, 9, 300))),
]
"""Rows, and those that are prompts."""


@pytest.mark.parametrize(("heads", "kv_heads", "dim", "size", "inner", "numbers"), SHAPES, ids=str)
@pytest.mark.parametrize("window", [None, 5, 70])
@pytest.mark.parametrize(("rows", "prompts"), PROMPTS, ids=str)
def test_a_layer_with_prompts_is_its_operations_to_the_bit(
    heads: int, kv_heads: int, dim: int, size: int, inner: int, numbers: tuple[int, ...], window: int | None,
    rows: int, prompts: tuple[tuple[int, int, int], ...],
) -> None:  # fmt: skip
    kernels = load_kernels(torch.float32)
    assert kernels is not None
    parts = replace(parts_of(heads, kv_heads, dim, size, inner, _fitting(numbers, size, inner)), window=window)
    assert QuantizedLayer(parts).takes_prompts
    step, other, hidden = *(Step(rows, kv_heads, dim, prompts) for _ in range(2)), torch.randn(rows, size)
    ours = whole(parts, hidden, step)
    assert torch.equal(ours, one_by_one(kernels, parts, hidden, other)) and ours.isfinite().all()
    assert torch.equal(step.k_cache, other.k_cache) and torch.equal(step.v_cache, other.v_cache)


def _fitting(numbers: tuple[int, ...], size: int, inner: int) -> tuple[int, ...]:
    """Q8_0 in the place of a K-quant that does not fit both sizes."""
    return tuple(8 if n >= 12 and (size % 256 or inner % 256) else n for n in numbers)


def test_no_row_depends_on_its_neighbours_or_on_threads() -> None:
    heads, kv_heads, dim, size = 8, 2, 64, 512
    parts = parts_of(heads, kv_heads, dim, size, 1024, (12, 14))
    step, hidden = Step(40, kv_heads, dim), torch.randn(40, size)
    expected = whole(parts, hidden, step.only(slice(0, 40)))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for rows in (slice(0, 1), slice(7, 9), slice(13, 26), slice(0, 40)):
                assert torch.equal(whole(parts, hidden[rows].contiguous(), step.only(rows)), expected[rows])
    finally:
        torch.set_num_threads(threads)


def test_what_is_no_number_stays_in_its_row() -> None:
    parts = parts_of(4, 2, 64, 256, 512, (8,))
    step, hidden = Step(3, 2, 64), torch.randn(3, 256)
    hidden[1, 5] = float("nan")
    ours = whole(parts, hidden, step)
    assert ours[[0, 2]].isfinite().all() and ours[1].isnan().all()


DRIVER = r"""
#include "SOURCE"
#include <stdio.h>
static Linear *linear_of(int64_t outputs, int64_t size) {
    int64_t bytes = outputs * (size / 32) * 34;
    uint8_t *blocks = calloc(bytes, 1), *packed = malloc(packed_bytes(Q8_0, outputs, size));
    for (int64_t i = 0; i < bytes; i++) blocks[i] = i % 34 == 1 ? 0x20 : (uint8_t)(i * 37 % 61);
    pack_quantized(packed, blocks, Q8_0, outputs, size);
    free(blocks);
    Part *part = malloc(sizeof *part);
    *part = (Part){packed, outputs, Q8_0};
    Linear *linear = malloc(sizeof *linear);
    *linear = (Linear){part, 1, size, NULL, outputs % 64 ? 8 : 16};
    return linear;
}
static void drop(const Linear *linear) {
    free((void *)linear->parts->packed), free((void *)linear->parts), free((void *)linear);
}
int main(void) {
    const int64_t heads[] = {1, 3, 34}, kv_heads[] = {1, 3, 2}, inner[] = {32, 288, 1504}, rows[] = {1, 2, 64};
    for (int shape = 0; shape < 3; shape++) for (int r = 0; r < 3; r++) {
        int64_t dim = 32, size = 96, h = heads[shape], kv = kv_heads[shape], slots = 16 * (rows[r] + 1);
        float norm[96], *x = calloc(rows[r] * size, 4), *angles = calloc(rows[r] * dim, 4);
        float *k = calloc(kv * slots * dim, 4), *v = calloc(kv * slots * dim, 4);
        int64_t *slot = calloc(rows[r], 8);
        int32_t *tables = calloc(rows[r], 4), *lens = calloc(rows[r], 4);
        for (int i = 0; i < size; i++) norm[i] = 1.0f;
        for (int64_t i = 0; i < rows[r]; i++) tables[i] = (int32_t)i + 1, lens[i] = 16, slot[i] = 16 * i + 31;
        for (int64_t i = 0; i < rows[r] * size; i++) x[i] = (float)(i % 17) - 8.0f;
        Layer layer = {norm, norm, linear_of((h + 2 * kv) * dim, size), linear_of(size, h * dim),
                       linear_of(2 * inner[shape], size), linear_of(size, inner[shape]),
                       h, kv, dim, 7, 1e-5f, 1e-5f, 1.0f};
        Stretch alone = {0, rows[r], tables, lens, 1, 0};
        Step step = {angles, angles, slot, &alone, rows[r], 1, slots, 16};
        if (quantized_layer(&layer, &step, x, k, v)) return 1;
        Stretch prompt = {0, rows[r], tables, NULL, 0, 16 * rows[r]};
        Step of_prompt = {angles, angles, slot, &prompt, rows[r], 1, slots, 16};
        if (quantized_layer(&layer, &of_prompt, x, k, v)) return 1;
        drop(layer.qkv), drop(layer.output), drop(layer.gate_up), drop(layer.down);
        free(x), free(angles), free(k), free(v), free(slot), free(tables), free(lens);
    }
    puts("done");
    return 0;
}
"""


@pytest.mark.slow
def test_nothing_is_read_or_written_out_of_bounds(tmp_path: Path) -> None:
    run_under_sanitizers(DRIVER, tmp_path)
