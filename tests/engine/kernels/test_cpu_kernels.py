"""The C kernels against plain torch, over the shapes that go wrong: one row, block edges, window edges, odd groups."""

import math

import pytest
import torch
import torch.nn.functional as F

from engine.attention.reference import gather_slots, visible
from engine.kernels.cpu import CpuKernels, load_kernels

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
    ],
)
@pytest.mark.parametrize(("softcap", "window"), [(None, None), (5.0, None), (None, 1), (2.0, 17)])
def test_paged_decode(
    kernels: tuple[CpuKernels, torch.dtype],
    heads: int,
    kv_heads: int,
    k_dim: int,
    v_dim: int,
    softcap: float | None,
    window: int | None,
) -> None:
    built, dtype = kernels
    block_size, lens = 16, [1, 15, 16, 17, 63, 64, 65, 300]
    num_blocks = 80
    k_cache = torch.randn(kv_heads, num_blocks * block_size, k_dim).to(dtype)
    v_cache = torch.randn(kv_heads, num_blocks * block_size, v_dim).to(dtype)
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


def test_without_a_compiler_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.kernels import build

    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    build.built.cache_clear()
    try:
        assert load_kernels(torch.float32) is None
    finally:
        build.built.cache_clear()
