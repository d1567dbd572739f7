"""Every backend but the one in Triton against the reference one, over blocks whose former tenants left NaNs behind."""

import math

import pytest
import torch

from engine.attention.context import AttentionBackend
from engine.attention.cpu import CpuAttention
from engine.attention.reference import ReferenceAttention, gather_slots
from engine.attention.sdpa import SdpaAttention
from engine.device.forward_batch import BatchBuilder, ForwardBatch
from engine.device.kv_cache import LayerCache
from engine.kernels.cpu import load_kernels
from engine.sampling_params import SamplingParams
from engine.scheduling.scheduled import Scheduled
from engine.scheduling.sequence import Sequence

BLOCK_SIZE, NUM_BLOCKS, KV_HEADS, HEADS, DIM = 4, 120, 2, 6, 16
LENS = [1, 3, 4, 5, 8, 9, 40, 90, 2]
"""Contexts of decoding sequences: block edges, and lengths far enough apart for several groups."""
PROMPTS = [(7, 7), (5, 13), (60, 90)]
"""Queries and context of sequences that catch up."""


def batch() -> tuple[ForwardBatch, torch.Tensor]:
    """A step of all these sequences, and which slots hold a token of theirs, bool `[num_slots]`."""
    blocks = iter(torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(0)).add(1).tolist())
    rows = []
    builder = BatchBuilder(max_num_seqs=20, max_blocks=40, block_size=BLOCK_SIZE, device=torch.device("cpu"))
    for slot, (queries, context) in enumerate([(1, n) for n in LENS] + PROMPTS):
        params = SamplingParams(max_tokens=9)
        made = Sequence(request_id=slot, prompt_token_ids=[1] * context, params=params, seed=0, max_len=context + 9)
        made.slot, made.num_computed_tokens = slot, context - queries
        # One block more than needed, as a sequence has that reserved all it may ever need.
        made.block_table = [next(blocks) for _ in range(-(-context // BLOCK_SIZE) + 1)]
        rows.append(Scheduled(made, queries))
    built = builder.build(rows)
    owned = torch.zeros((NUM_BLOCKS + 1) * BLOCK_SIZE, dtype=torch.bool)
    for row in rows:
        table = torch.tensor(row.sequence.block_table)
        owned[gather_slots(table, row.sequence.num_tokens, BLOCK_SIZE)] = True
    return built, owned


def make(name: str) -> AttentionBackend:
    if name == "reference":
        return ReferenceAttention(BLOCK_SIZE)
    if name == "sdpa":
        return SdpaAttention(BLOCK_SIZE)
    kernels = load_kernels(torch.float32) if name == "kernels" else None
    if name == "kernels" and kernels is None:
        pytest.skip("no C compiler on this machine (cc, gcc or clang)")
    return CpuAttention(BLOCK_SIZE, kernels)


@pytest.mark.parametrize("name", ["reference", "sdpa", "kernels", "torch"])
@pytest.mark.parametrize(("softcap", "window"), [(None, None), (3.0, None), (None, 6), (3.0, 6)])
@pytest.mark.parametrize("left_behind", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("v_dim", [None, DIM - 4], ids=["values", "latents"])
def test_what_former_tenants_left_is_never_seen(
    name: str, softcap: float | None, window: int | None, left_behind: float, v_dim: int | None
) -> None:
    """With a `v_dim` the values are the first so many numbers of the keys."""
    built, owned = batch()
    generator = torch.Generator().manual_seed(1)
    num_tokens = len(built.input_ids)
    q = torch.randn(HEADS, num_tokens, DIM, generator=generator)
    k, v = (torch.randn(KV_HEADS, num_tokens, DIM, generator=generator) for _ in range(2))
    clean = LayerCache(*(torch.randn(KV_HEADS, len(owned), DIM, generator=generator) for _ in range(2)))
    dirty = LayerCache(clean.k.clone(), clean.v.clone())
    if v_dim is not None:
        v, clean, dirty = k[..., :v_dim], *(LayerCache.of_latents(cache.k, v_dim) for cache in (clean, dirty))
    for part in dirty.parts:
        part[:, ~owned] = left_behind
        part[:, :BLOCK_SIZE] = 0  # nobody writes to the null block
    expected, actual = [], []
    for backend, cache, out in ((ReferenceAttention(BLOCK_SIZE), clean, expected), (make(name), dirty, actual)):
        backend.plan(built)
        out.append(backend.run(q, k, v, cache, scaling=DIM**-0.5, softcap=softcap, window=window))
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-4, atol=1e-5)
