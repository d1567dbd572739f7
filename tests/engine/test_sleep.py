"""A model that was put away and brought back says what it said before, and its memory was really gone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.engine import Engine
from engine.execution.model_runner import ModelRunner
from engine.execution.put_away import PutAway, tensors_of
from engine.messages import AddRequest
from engine.sampling_params import SamplingParams
from tests.engine.test_oracle import make_engine, random_mix, run
from tests.engine.test_oracle_images import finish
from tests.vision_models import Eyes, build_seeing_model


def held(engine: Engine) -> int:
    """Bytes behind the model's tensors and the KV cache, each storage once."""
    runner = engine._runner
    assert isinstance(runner, ModelRunner)
    tensors = [*tensors_of(runner.model), *(part for cache in runner.caches.values() for part in cache.parts)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values() if storage.resizable())


def wakes_as_it_was(directory: Path, **options: object) -> None:
    """Twice put away and brought back, with all of its memory, and the same answers."""
    engine = make_engine(directory, **options)
    requests, arrivals = random_mix(3, longest=30)
    before = run(engine, requests, arrivals)
    for _ in range(2):
        awake = held(engine)
        device_bytes, host_bytes = engine.sleep()
        assert held(engine) == 0 and device_bytes == awake and 0 < host_bytes <= device_bytes
        assert engine.is_asleep and engine.step() == [] and engine.stats().blocks_cached == 0
        engine.wake()
        assert not engine.is_asleep and held(engine) == awake
        assert run(engine, requests, arrivals) == before


@pytest.mark.parametrize("family", ["llama", "gemma2", "deepseek_v3"])
def test_what_wakes_says_what_it_said_before(family: str, tiny_model_dir: Callable[[str], Path]) -> None:
    """Without fusion, since oneDNN keeps weights where storages cannot be seen."""
    wakes_as_it_was(tiny_model_dir(family), fusion=False)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "mllama"])
def test_images_are_not_kept_while_it_sleeps(family: str, tmp_path: Path) -> None:
    """What asks about them again has them encoded again."""
    eyes = Eyes(family, build_seeing_model(family, tmp_path))
    engine = make_engine(eyes.directory, fusion=False)
    sight = engine._runner.sight  # type: ignore[attr-defined]
    parts = [[7, 19, 23], (56, 84), [5, 101]]
    wanted = eyes.generate(parts, 4)
    for turn in range(3):
        eyes.add(engine, turn, parts, SamplingParams(max_tokens=4, temperature=0))
        assert finish(engine)[turn, 0] == wanted
        assert sight.images.num_bytes > 0 and sight.images.num_encoded == turn + 1
        awake = held(engine)
        device_bytes, _ = engine.sleep()
        assert sight.images.num_bytes == 0 and device_bytes == awake + sight.num_bytes
        engine.wake()
        if sight.shelf is not None:
            assert sight.shelf.num_kept == 0


def test_a_request_that_comes_all_the_same_wakes_it(tiny_model_dir: Callable[[str], Path]) -> None:
    engine = make_engine(tiny_model_dir("llama"), fusion=False)
    request = AddRequest(1, [5, 6, 7], SamplingParams(max_tokens=5, temperature=0))
    before = run(engine, {1: request}, {1: 0})
    engine.sleep()
    assert run(engine, {1: request}, {1: 0}) == before


def test_views_and_ties_are_put_away_once_and_dropped_ones_come_back_as_zeros() -> None:
    whole, cache = torch.arange(12.0), torch.full((3,), float("nan"))
    view = whole[4:8]
    away = PutAway([whole, view, view], [cache, cache], torch.device("cpu"))
    assert (away.host_bytes, away.device_bytes) == (48, 60)
    assert whole.untyped_storage().nbytes() == cache.untyped_storage().nbytes() == 0
    away.bring_back()
    assert view.tolist() == [4, 5, 6, 7] and cache.tolist() == [0, 0, 0]
    view += 1
    assert whole[4] == 5, "still the same memory"
