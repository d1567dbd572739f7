"""How many kernels Triton would build while steps of every shape go by: as few as their constants ask for."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="needs triton, which comes with torch for CUDA and with make test on Linux")

import numpy as np
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from engine.device.kv_cache import LayerCache
from engine.kernels import triton_attention, triton_filter, triton_layer, triton_pieces, triton_sampler
from engine.sampling.device_sampler import DeviceSampler
from tests.engine.fake_grammar import FakeGrammar
from tests.engine.sampling.reference import MIXES
from tests.engine.sampling.sampler_cases import sequence

Variants = dict[str, set[str]]
BACKEND = make_backend(GPUTarget("cuda", 90, 32))


@pytest.fixture
def variants(monkeypatch: pytest.MonkeyPatch) -> Variants:
    """By kernel: what Triton would build one each for. Nothing is launched."""
    found: Variants = {}

    def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        bind = create_function_from_signature(kernel.signature, kernel.params, BACKEND)
        _, kinds, _ = bind(*arguments, **options)
        found.setdefault(kernel.fn.__name__, set()).add(str(kinds))

    for module in (triton_attention, triton_filter, triton_layer, triton_pieces, triton_sampler):
        monkeypatch.setattr(module, "launch", launch)
    return found


def columns(count: int, rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """As they come in one copy: each begins where the one before ends."""
    return torch.zeros(count * rows, dtype=dtype).split([rows] * count)


@pytest.mark.parametrize("queries", [1, 40])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (7, 1), (25, 5)])
def test_attention_is_built_once_for_rows_and_blocks_and_pieces_of_any_number(
    queries: int, heads: int, kv_heads: int, variants: Variants
) -> None:
    cache = LayerCache(*torch.zeros(2, kv_heads, 64, 64, dtype=torch.bfloat16))
    for before in (0, 1, 2, 4, 16):
        for rows in (1, 2, 16, 17):
            for blocks in (1, 2, 16, 33):
                tables, lens, starts = (torch.zeros(before + rows + 1, *shape, dtype=torch.int32)[before:]
                                        for shape in ((blocks,), (), ()))  # fmt: skip
                q = torch.zeros(heads, rows * queries, 64, dtype=torch.bfloat16)
                for processors in (1, 132):
                    layout = triton_attention.layout_for(
                        q, cache, num_seqs=rows, max_query_len=queries, num_processors=processors
                    )
                    pieces = triton_pieces.cut(lens[:rows], starts, layout)
                    triton_attention.paged_attention(q, cache, tables[:rows], pieces, block_size=16, scaling=0.1)
    assert {name: len(kinds) for name, kinds in variants.items()} == {
        "cut_kernel": 1, "attend_kernel": 1, "join_kernel": 1
    }  # fmt: skip


def test_rotary_is_built_once_wherever_slots_lie(variants: Variants) -> None:
    cache = torch.zeros(2, 64, 64, dtype=torch.bfloat16)
    for rows in (1, 2, 3):
        *_, slots = columns(4, rows, torch.int64)
        qkv, angles = torch.zeros(rows, 8 * 64, dtype=torch.bfloat16), torch.zeros(rows, 64, dtype=torch.bfloat16)
        triton_layer.rotate_write(qkv, angles, angles, slots, cache, cache, heads=4)
    assert len(variants["rotate_write_kernel"]) == 1, variants


def test_sampling_is_built_once_for_any_number_of_rows(variants: Variants) -> None:
    vocab = 300
    counts, in_prompt = torch.zeros(9, vocab, dtype=torch.int32), torch.zeros(9, vocab, dtype=torch.bool)
    last_tokens = torch.zeros(9, dtype=torch.int64)
    for rows in range(1, 9):
        slots, keys, top_ks, mask_rows = columns(4, rows, torch.int64)
        temperatures, top_ps, min_ps, *penalties = columns(6, rows, torch.float32)
        logits = torch.zeros(rows, vocab, dtype=torch.bfloat16)
        words = torch.from_numpy(np.zeros((rows, 10), dtype=np.int32))
        x = triton_sampler.adjust(
            logits, slots, penalties=(penalties[0], penalties[1], penalties[2]), counts=counts, in_prompt=in_prompt,
            mask_rows=mask_rows, words=words,
        )  # fmt: skip
        limits = triton_filter.thresholds(x, temperatures, top_ks, top_ps, min_ps)
        triton_sampler.race(x, slots, last_tokens, hot=(temperatures, keys, *limits))
    assert {name: len(kinds) for name, kinds in variants.items()} == {
        "adjust_kernel": 1, "peaks_kernel": 1, "floors_kernel": 1, "gather_kernel": 1, "thresholds_kernel": 1,
        "race_kernel": 1, "choose_kernel": 1,
    }  # fmt: skip


def test_a_sampler_that_is_warm_builds_nothing_more(variants: Variants, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked of it, in however many rows."""
    vocab = 32  # a fake grammar fills one word
    device = torch.device("cpu")
    sampler = DeviceSampler(max_num_seqs=len(MIXES) + 1, vocab_size=vocab, device=device)
    sampler.warm_up(torch.bfloat16)
    warm = {name: set(kinds) for name, kinds in variants.items()}
    assert {name: len(kinds) for name, kinds in warm.items()} == {
        "adjust_kernel": 4, "peaks_kernel": 1, "floors_kernel": 1, "gather_kernel": 1, "thresholds_kernel": 1,
        "race_kernel": 3, "choose_kernel": 1,
    }  # fmt: skip
    # What a kernel that is not launched leaves behind may be anything; a token must be one all the same.
    monkeypatch.setattr(triton_sampler.torch, "empty", torch.zeros)
    last_tokens = torch.zeros(len(MIXES) + 1, dtype=torch.int64)
    sequences = [sequence(params, slot) for slot, params in enumerate(MIXES.values())]
    held = sequence(MIXES["greedy"], len(MIXES), grammar=FakeGrammar("1"))
    for rows in ([held], sequences, [*sequences, held], sequences[:1], *([one] for one in sequences)):
        sampler.sample(torch.zeros(len(rows), vocab, dtype=torch.bfloat16), rows, last_tokens)
    assert variants == warm
