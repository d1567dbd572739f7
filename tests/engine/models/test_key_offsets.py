"""What an FP8 cache holds its keys without."""

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.attention.reference import ReferenceAttention
from engine.device.forward_batch import ForwardBatch
from engine.device.kv_cache import LayerCache
from engine.models.fp8_offsets import input_means
from engine.models.key_offsets import key_offsets
from engine.models.sample import WINDOW, positions
from engine.weights.random_tokenizer import write_tokenizer
from tests.engine.models.test_fp8 import DENSE, load_from
from tests.engine.test_oracle import make_engine
from tests.gpu import fp8_checks
from tests.tiny_models import VOCAB_SIZE


@pytest.fixture(scope="module")
def biased(tiny_model_dir: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose keys have a large bias in the dimensions that turn slowest, as those of Qwen 2.5 have."""
    directory = tmp_path_factory.mktemp("biased") / "qwen2"
    shutil.copytree(tiny_model_dir("qwen2"), directory, copy_function=shutil.copy)
    fp8_checks.give_large_keys(directory)
    return directory


def test_attention_does_not_see_an_offset() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(heads, 7, 16, generator=generator) for heads in (4, 2, 2))
    batch = ForwardBatch(
        input_ids=torch.zeros(7, dtype=torch.int64), positions=torch.arange(7), slot_mapping=torch.arange(8, 15),
        block_tables=torch.tensor([[1, 2]], dtype=torch.int32), seqlens_k=torch.tensor([7], dtype=torch.int32),
        query_starts=torch.tensor([0, 7], dtype=torch.int32), logits_index=torch.tensor([6]), query_lens=[7],
        context_lens=[7], num_decodes=0,
    )  # fmt: skip
    backend = ReferenceAttention(8)
    backend.plan(batch)
    found = []
    for offset in (None, torch.randn(2, 16, generator=generator) * 5):
        cache = LayerCache(torch.zeros(2, 24, 16), torch.zeros(2, 24, 16), offset)
        found.append(backend.run(q, k, v, cache, scaling=0.25, softcap=None, window=None))
        if offset is not None:
            torch.testing.assert_close(cache.k[:, 8:15], k - offset[:, None])
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def moved_by_the_cache(directory: Path) -> float:
    before, after = (
        fp8_checks.scores(directory, "cpu", attention="reference", kv_dtype=kv_dtype) for kv_dtype in ("auto", "fp8")
    )
    return float((after - before).abs().mean() / before.std())


def test_a_large_bias_of_keys_costs_nothing(biased: Path, tmp_path: Path) -> None:
    """Without a tokenizer there is no text to find it by, and what tells keys apart is lost in the rounding."""
    lost = moved_by_the_cache(biased)
    directory = tmp_path / "tokenized"
    shutil.copytree(biased, directory, copy_function=shutil.copy)
    write_tokenizer(directory, VOCAB_SIZE, None)
    assert moved_by_the_cache(directory) < 0.1 < 0.3 < lost
    runner = make_engine(biased, attention="reference", kv_dtype="fp8")._runner
    assert any("there is no tokenizer.json" in note for note in runner.notes)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("family", "has_offsets"), [("llama", True), ("gemma2", False), ("deepseek_v3", False)])
def test_scores_that_are_capped_keep_their_keys_and_so_do_latents(
    family: str, has_offsets: bool, tiny_model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = tmp_path / family
    shutil.copytree(tiny_model_dir(family), directory, copy_function=shutil.copy)
    write_tokenizer(directory, VOCAB_SIZE, None)
    runner = make_engine(directory, attention="reference", kv_dtype="fp8")._runner
    caches = runner.caches.values()  # type: ignore[attr-defined]
    assert all((cache.key_offset is not None) is has_offsets for cache in caches)
    for cache in caches:
        assert cache.key_offset is None or cache.key_offset.shape == (cache.k.shape[0], cache.k.shape[2])
    plain = make_engine(directory, attention="reference")._runner.caches.values()  # type: ignore[attr-defined]
    assert all(cache.key_offset is None for cache in plain)


@pytest.mark.parametrize("family", [*DENSE, "qwen2_5_vl"])
def test_every_family_can_read(family: str, tiny_model_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """With transformers' attention, at positions that jump; a model with a sliding window too."""
    write_tokenizer(tmp_path, VOCAB_SIZE, None)
    model = load_from(tiny_model_dir(family)).model
    found = key_offsets(model, tmp_path, 100_000)
    assert set(found) == set(range(len(model.get_decoder().layers)))
    assert all(bool(offset.isfinite().all()) for offset in found.values())
    assert all(mean.count > WINDOW for mean in input_means(model, tmp_path).values())


@pytest.mark.parametrize("context", [0, 600, 1025, 4096, 131072])
@pytest.mark.parametrize("length", [40, WINDOW, WINDOW + 1])
def test_positions_rise_and_stay_within_the_context(context: int, length: int) -> None:
    for window in range(8):
        found = positions(length, window, context)
        assert len(found) == length and found[0] >= 0 and all(b > a for a, b in pairwise(found))
        assert found[-1] < max(context, length)


def test_angles_of_every_frequency_meet_all_their_values() -> None:
    """But for those that hardly turn: a mean over these positions is near that over all."""
    context = 32768
    where = np.concatenate([positions(WINDOW, window, context) for window in range(8)])
    assert where.min() < context / 20 and where.max() > context * 19 / 20
    for turns in (3, 10, 57.3, 64, 128, 512, 1000, 5000):
        frequency = 2 * np.pi * turns / context
        assert abs(np.exp(1j * frequency * where).mean()) < 0.15, turns
    assert abs(np.exp(1j * 0.01 * np.pi / context * where).mean()) > 0.99
