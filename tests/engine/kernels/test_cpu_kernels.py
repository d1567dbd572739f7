"""The C kernels against plain torch, over the shapes that go wrong: one row, block edges, window edges, odd groups."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from engine.attention.reference import gather_slots, visible
from engine.kernels import build
from engine.kernels.cpu import CpuKernels, load_kernels
from tests.engine.kernels.test_cpu_quantized import run_under_sanitizers

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=DTYPES, ids=str)
def kernels(request: pytest.FixtureRequest) -> tuple[CpuKernels, torch.dtype]:
    built = load_kernels(request.param)
    if built is None:
        pytest.skip("no C compiler on this machine (cc, gcc or clang)")
    torch.manual_seed(0)
    return built, request.param


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = 1e-5 if actual.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(actual.float(), expected.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(1, 7), (1, 576), (5, 64), (130, 576)])
def test_add_rms_norm(kernels: tuple[CpuKernels, torch.dtype], shape: tuple[int, int]) -> None:
    built, dtype = kernels
    residual, delta, weight = torch.randn(shape) * 30, torch.randn(shape).to(dtype), torch.rand(shape[1]).to(dtype)
    expected = residual + delta.float()
    out = built.add_rms_norm(residual, delta, weight, 1e-5)
    torch.testing.assert_close(residual, expected)
    close(out, F.rms_norm(expected, (shape[1],), weight.float(), 1e-5))
    close(built.add_rms_norm(residual, None, weight, 1e-5), out)
    torch.testing.assert_close(residual, expected)


def test_silu_mul(kernels: tuple[CpuKernels, torch.dtype]) -> None:
    built, dtype = kernels
    gate_up = torch.randn(40, 2 * 100).to(dtype)
    gate_up[0, :6] = torch.tensor([0.0, -0.0, 100.0, -100.0, 1e30, -1e30])
    gate, up = gate_up.float().split(100, dim=-1)
    close(built.silu_mul(gate_up), F.silu(gate) * up)


@pytest.mark.parametrize("rows", [1, 3, 200])
def test_rope_and_write(kernels: tuple[CpuKernels, torch.dtype], rows: int) -> None:
    built, dtype = kernels
    heads, kv_heads, dim, num_slots = 6, 2, 32, 400
    qkv = torch.randn(rows, (heads + 2 * kv_heads) * dim).to(dtype)
    angles = torch.randn(rows, dim // 2).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    slots = torch.randperm(num_slots)[:rows]
    k_cache, v_cache = (
        torch.zeros(kv_heads, num_slots, dim, dtype=dtype),
        torch.zeros(kv_heads, num_slots, dim, dtype=dtype),
    )
    original = qkv.clone().float().view(rows, -1, dim)

    def rotated(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        half = torch.cat((-second, first), dim=-1)
        return x * cos.unsqueeze(1) + half * sin.unsqueeze(1)

    built.rope_and_write(qkv, cos, sin, slots, k_cache, v_cache, heads)
    close(qkv.view(rows, -1, dim)[:, :heads], rotated(original[:, :heads]))
    close(k_cache[:, slots].transpose(0, 1), rotated(original[:, heads : heads + kv_heads]))
    close(v_cache[:, slots].transpose(0, 1), original[:, heads + kv_heads :])
    untouched = torch.ones(num_slots, dtype=torch.bool).index_fill_(0, slots, False)
    assert not k_cache[:, untouched].any() and not v_cache[:, untouched].any()


@pytest.mark.parametrize(
    ("heads", "kv_heads", "k_dim", "v_dim"),
    [
        (9, 3, 64, 64),
        (4, 4, 64, 64),
        (12, 1, 128, 128),
        (40, 2, 96, 96),
        (3, 3, 24, 16),
        (2, 1, 256, 256),
        (5, 5, 7, 7),
        (14, 2, 80, 72),
        (8, 4, 20, 44),
        (20, 1, 576, 512),
    ],
)
@pytest.mark.parametrize(("softcap", "window"), [(None, None), (5.0, None), (None, 1), (2.0, 17)])
@pytest.mark.parametrize("latent", [False, True])
def test_paged_decode(
    kernels: tuple[CpuKernels, torch.dtype],
    heads: int,
    kv_heads: int,
    k_dim: int,
    v_dim: int,
    softcap: float | None,
    window: int | None,
    latent: bool,
) -> None:
    """If `latent`, values are the first numbers of keys."""
    built, dtype = kernels
    v_dim = min(v_dim, k_dim) if latent else v_dim
    block_size, lens = 16, [1, 15, 16, 17, 63, 64, 65, 300]
    num_blocks = 80
    k_cache = torch.randn(kv_heads, num_blocks * block_size, k_dim).to(dtype)
    v_cache = k_cache[..., :v_dim] if latent else torch.randn(kv_heads, num_blocks * block_size, v_dim).to(dtype)
    free = torch.randperm(num_blocks).tolist()
    tables = torch.zeros(len(lens), 20, dtype=torch.int32)
    for row, length in enumerate(lens):
        for position in range(-(-length // block_size)):
            tables[row, position] = free.pop()
    owned = torch.zeros(num_blocks * block_size, dtype=torch.bool)
    for row, length in enumerate(lens):
        owned[gather_slots(tables[row], length, block_size)] = True
    k_cache[:, ~owned] = math.nan  # what others left behind must not be looked at
    v_cache[:, ~owned] = math.nan
    q = torch.randn(heads, len(lens), k_dim).to(dtype).transpose(0, 1)
    scaling = k_dim**-0.5
    out = built.paged_decode(
        q, k_cache, v_cache, tables, torch.tensor(lens, dtype=torch.int32),
        block_size=block_size, scaling=scaling, softcap=softcap, window=window,
    )  # fmt: skip
    for row, length in enumerate(lens):
        slots = gather_slots(tables[row], length, block_size)
        keys = k_cache[:, slots].float().repeat_interleave(heads // kv_heads, dim=0)
        values = v_cache[:, slots].float().repeat_interleave(heads // kv_heads, dim=0)
        scores = torch.einsum("hd,hkd->hk", q[row].float(), keys) * scaling
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        positions = torch.arange(length)
        scores.masked_fill_(~visible(positions[-1:], positions, window), -math.inf)
        close(out[row], torch.einsum("hk,hkd->hd", scores.softmax(-1), values))


class Sequence:
    """Keys and values of one sequence in blocks here and there, among what others have left behind."""

    def __init__(self, context: int, kv_heads: int, k_dim: int, v_dim: int, block_size: int = 16) -> None:
        blocks = -(-context // block_size)
        self.table = torch.randperm(2 * blocks + 3)[:blocks].to(torch.int32)
        slots = gather_slots(self.table, context, block_size)
        self.keys, self.values = torch.randn(kv_heads, context, k_dim), torch.randn(kv_heads, context, v_dim)
        self.k_cache = torch.full((kv_heads, (2 * blocks + 3) * block_size, k_dim), math.nan)
        self.v_cache = torch.full((kv_heads, (2 * blocks + 3) * block_size, v_dim), math.nan)
        self.k_cache[:, slots], self.v_cache[:, slots] = self.keys, self.values
        self.context, self.block_size = context, block_size

    def attend(
        self, kernels: CpuKernels, q: torch.Tensor, softcap: float | None = None, window: int | None = None,
        context: int | None = None,
    ) -> torch.Tensor:  # fmt: skip
        return kernels.attend_prompt(
            q, self.k_cache, self.v_cache, self.table, context_len=context or self.context,
            block_size=self.block_size, scaling=q.shape[2] ** -0.5, softcap=softcap, window=window,
        )  # fmt: skip

    def exact(self, q: torch.Tensor, softcap: float | None, window: int | None) -> torch.Tensor:
        group = q.shape[1] // len(self.keys)
        keys, values = (x.double().repeat_interleave(group, dim=0) for x in (self.keys, self.values))
        scores = torch.einsum("nhd,hkd->hnk", q.double(), keys) * q.shape[2] ** -0.5
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        positions = torch.arange(self.context)
        scores.masked_fill_(~visible(positions[self.context - len(q) :], positions, window), -math.inf)
        return torch.einsum("hnk,hkd->nhd", scores.softmax(-1), values)


@pytest.fixture
def prompts() -> CpuKernels:
    built = load_kernels(torch.float32)
    if built is None:
        pytest.skip("no C compiler on this machine (cc, gcc or clang)")
    torch.manual_seed(0)
    return built


@pytest.mark.parametrize(
    ("heads", "kv_heads", "k_dim", "v_dim"),
    [
        (9, 3, 64, 64),
        (4, 4, 24, 16),
        (12, 2, 128, 128),
        (64, 1, 16, 32),
        (5, 1, 7, 48),
        (2, 1, 256, 256),
        (6, 2, 40, 24),
    ],
)
@pytest.mark.parametrize(("softcap", "window"), [(None, None), (5.0, None), (None, 1), (2.0, 17), (None, 64)])
def test_attend_prompt(
    prompts: CpuKernels,
    heads: int,
    kv_heads: int,
    k_dim: int,
    v_dim: int,
    softcap: float | None,
    window: int | None,
) -> None:
    for queries, context in [(1, 1), (1, 65), (5, 5), (16, 300), (63, 64), (64, 64), (65, 65), (130, 193)]:
        sequence = Sequence(context, kv_heads, k_dim, v_dim)
        assert prompts.takes_prompts(heads, sequence.k_cache, sequence.v_cache)
        q = (torch.randn(heads, queries, k_dim) * 3).transpose(0, 1)
        close(sequence.attend(prompts, q, softcap, window), sequence.exact(q, softcap, window))


def test_no_query_of_a_prompt_depends_on_its_neighbours_or_on_threads(prompts: CpuKernels) -> None:
    sequence, q = Sequence(400, 3, 64, 64), torch.randn(150, 9, 64)
    whole = sequence.attend(prompts, q)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            for start, end in [(0, 150), (0, 1), (3, 20), (99, 150)]:
                context = sequence.context - 150 + end
                assert torch.equal(sequence.attend(prompts, q[start:end], context=context), whole[start:end])
    finally:
        torch.set_num_threads(threads)


def test_scores_beyond_all_measure_and_what_is_no_number(prompts: CpuKernels) -> None:
    sequence, q = Sequence(130, 1, 16, 16), torch.randn(20, 2, 16)
    q[3], q[4] = 1e18, -1e18
    q[5, 1, 0] = math.nan
    out = sequence.attend(prompts, q)
    assert out[5, 1].isnan().all()
    out[5, 1] = 0
    assert out.isfinite().all()
    close(out[:3], sequence.exact(q, None, None)[:3])


def test_what_tiles_are_not_for_is_said(prompts: CpuKernels) -> None:
    cache = torch.zeros(1, 16, 20)
    assert not prompts.takes_prompts(4, cache, cache), "values of 20 numbers"
    assert not prompts.takes_prompts(65, cache, torch.zeros(1, 16, 16)), "65 heads of a KV head"
    other = load_kernels(torch.bfloat16)
    assert other is not None and not other.takes_prompts(4, cache[..., :16], cache[..., :16])


DRIVER = r"""
#include "SOURCE"
#include <stdio.h>
int main(void) {
    const int64_t groups[] = {1, 3, 64}, queries[] = {1, 17, 70}, dims[] = {16, 24, 256};
    for (int g = 0; g < 3; g++) for (int n = 0; n < 3; n++) for (int d = 0; d < 3; d++) {
        int64_t dim = dims[d], heads = 2 * groups[g], context = queries[n] + 30, blocks = (context + 15) / 16;
        float *q = malloc(queries[n] * heads * dim * 4), *out = malloc(queries[n] * heads * dim * 4);
        float *k = malloc(2 * blocks * 16 * dim * 4), *v = malloc(2 * blocks * 16 * dim * 4);
        int32_t *table = malloc(blocks * 4);
        for (int64_t i = 0; i < blocks; i++) table[i] = (int32_t)(blocks - 1 - i);
        for (int64_t i = 0; i < queries[n] * heads * dim; i++) q[i] = (float)(i % 17) - 8.0f;
        for (int64_t i = 0; i < 2 * blocks * 16 * dim; i++) k[i] = v[i] = (float)(i % 13) - 6.0f;
        Prompt prompt = {q, k, v, table, heads * dim, dim, queries[n], context, heads, 2, dim, dim, blocks * 16, 16,
                         n * 7, 1.0f, 0.0f};
        attend_prompt(out, &prompt);
        int32_t len = (int32_t)(queries[n] + 30);
        int64_t slots = blocks * 16, odd = dim - 3, odder = dim - 5;
        paged_decode_f32(out, q, heads * dim, odd, k, v, table, blocks, &len, 1, heads, 2, odd, odder, slots, 16, n * 7,
                         1.0f, 0.0f);
        paged_decode_bf16((bf16 *)out, (bf16 *)q, heads * dim, dim, (bf16 *)k, (bf16 *)v, table, blocks, &len, 1, heads,
                          2, dim, dim, slots, 16, n * 7, 1.0f, 2.0f);
        free(q), free(out), free(k), free(v), free(table);
    }
    puts("done");
    return 0;
}
"""


@pytest.mark.slow
def test_nothing_of_attention_is_read_or_written_out_of_bounds(prompts: CpuKernels, tmp_path: Path) -> None:
    run_under_sanitizers(DRIVER, tmp_path, Path(build.__file__).with_name("cpu.c"))


def test_without_a_compiler_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    build.built.cache_clear()
    try:
        assert load_kernels(torch.float32) is None
    finally:
        build.built.cache_clear()
