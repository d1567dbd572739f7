"""What a step takes: rehearsed on the device that will run it, and set aside before the KV cache gets the rest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.device import kv_cache
from engine.device.kv_cache import GIB, size_cache
from engine.errors import ConfigError
from engine.execution import model_runner
from engine.execution.footprint import peak_bytes
from engine.execution.model_runner import ModelRunner
from engine.sizing.cache import LayerShape, overhead_bytes
from tests.engine.test_oracle import make_engine

CUDA = torch.device("cuda")


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_rehearsal_runs_and_leaves_nothing(family: str, tiny_model_dir: Callable[[str], Path]) -> None:
    runner = make_engine(tiny_model_dir(family), max_batched_tokens=64)._runner
    assert isinstance(runner, ModelRunner)
    sampled = runner.rehearse(runner.caches)
    assert len(sampled.token_ids) == runner.limits.max_num_seqs and all(sampled.finite)
    assert all(entry is not None and len(entry.top_ids) == 20 for entry in sampled.logprobs)
    for cache in runner.caches.values():  # only the null block was written
        assert not cache.k[:, 4:].any() and not cache.v[:, 4:].any()


def test_nothing_is_measured_on_a_cpu() -> None:
    assert peak_bytes(lambda: pytest.fail("it ran"), torch.device("cpu")) == 0


def test_what_is_set_aside_is_not_given_to_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "available_memory", lambda device: 10 * GIB)
    monkeypatch.setattr(kv_cache, "total_memory", lambda device: 80 * GIB)

    def blocks(memory: str, reserved: int) -> int:
        config = EngineConfig(name="t", source="t", memory=memory)
        return size_cache(config, 1024, 4096, CUDA, reserved=reserved).num_blocks

    assert blocks("auto", 0) == int(10 * GIB * kv_cache.CUDA_SHARE) // (16 * 1024)
    assert blocks("auto", 4 * GIB) == int(6 * GIB * kv_cache.CUDA_SHARE) // (16 * 1024)
    assert blocks("0.05", 4 * GIB) == blocks("4GiB", 4 * GIB) == 4 * GIB // (16 * 1024)
    with pytest.raises(ConfigError, match=r"8\.0 GiB for the KV cache was asked for, 6\.0 GiB are left for it"):
        blocks("8GiB", 4 * GIB)


def test_what_a_cache_takes_beside_its_blocks_is_set_aside(
    tiny_model_dir: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {0: LayerShape(2, 64, 64), 1: LayerShape(2, 64, 32)}
    null_block = 16 * 2 * (128 + 96) * 2
    assert overhead_bytes(shapes, 2, 16, is_cuda=False) == null_block
    assert overhead_bytes(shapes, 2, 16, is_cuda=True) == null_block + 4 * 2 * 2**20
    seen: list[int] = []

    def size(*arguments: Any, reserved: int, ranks: object) -> kv_cache.CacheSize:
        seen.append(reserved)
        return size_cache(*arguments, reserved=reserved)

    monkeypatch.setattr(model_runner, "size_cache", size)
    runner = make_engine(tiny_model_dir("llama"))._runner
    assert isinstance(runner, ModelRunner)
    cache = next(iter(runner.caches.values()))
    assert seen == [len(runner.caches) * 2 * cache.k.shape[0] * cache.k.shape[2] * 4 * runner._block_size]
