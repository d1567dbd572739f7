"""What images take of memory is known at load: the largest of each family, the room for what is kept, the pixels."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from engine import reception as reception_module
from engine.build import build_engine
from engine.config import EngineConfig
from engine.device import kv_cache
from engine.execution import sight as sight_module
from engine.execution.sight import Sight
from engine.models.vision import FAMILIES
from engine.models.vision_qwen import QwenEncoder
from tests.engine.test_oracle import make_engine
from tests.engine.test_oracle_images import finish
from tests.engine.test_oracle_vision import TEXT, greedy
from tests.tiny_models import VISION_FAMILIES
from tests.vision_models import SEEING, Eyes, build_seeing_model


@pytest.fixture(scope="module", params=SEEING)
def eyes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Eyes:
    return Eyes(request.param, build_seeing_model(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Eyes:
    directory: Path = tmp_path_factory.mktemp("qwen")
    return Eyes("qwen2_5_vl", build_seeing_model("qwen2_5_vl", directory))


def test_the_largest_image_is_as_large_as_any(eyes: Eyes) -> None:
    sight: Sight = make_engine(eyes.directory)._runner.sight  # type: ignore[attr-defined]
    small, largest = (sight.encoder.example(tokens) for tokens in (None, 512))
    sight.encoder.check((small, largest))
    for image in (small, largest):
        assert torch.isfinite(sight.encoder.encode(image)).all()
    met = [eyes.cut(height, width) for height, width in [(800, 800), (28, 28), (90, 700), (700, 90), (400, 600)]]
    pixels = [len(array.data) for image in met for array in image.arrays]
    assert max(pixels) <= largest.num_bytes
    assert min(pixels) >= small.num_bytes // 4
    if eyes.family != "mllama":
        kept = sight.encoder.encode(largest)
        assert kept.nbytes == largest.length * sight.encoder.bytes_per_token(torch.float32)


def load(directory: Path, **options: Any) -> Any:
    config = EngineConfig(
        name="tiny", source=str(directory), dtype="float32", device="cpu", threads=1, block_size=4, **options
    )
    return build_engine(config, lambda *_: None)[0]._runner


def test_what_is_kept_of_images_is_taken_from_the_cache(eyes: Eyes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "available_memory", lambda _: 8 << 20)
    monkeypatch.setattr(kv_cache, "CPU_CONTEXTS", 1 << 20)
    seeing = load(eyes.directory)
    assert seeing.sight is not None and 0 < seeing.sight.num_bytes < 4 << 20
    assert seeing.kv_bytes + seeing.sight.num_bytes <= 8 << 20
    monkeypatch.setattr(sight_module, "make_encoder", lambda _: None)
    blind = load(eyes.directory)
    assert blind.sight is None and blind.num_blocks > seeing.num_blocks


def test_pixels_of_all_requests_are_bounded(qwen: Eyes, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(qwen.directory)
    parts = [TEXT, (56, 84), TEXT]
    one = sum(len(array.data) for image in qwen.prompt(parts)[1] for array in image.arrays)
    monkeypatch.setattr(reception_module, "MAX_PIXEL_BYTES", 2 * one)
    for request_id in range(3):
        qwen.add(engine, request_id, parts, greedy(4))
    (refused,) = [output for output in engine.step() if output.finish_reason]
    assert refused.request_id == 2 and refused.error_code == "overloaded"
    assert set(finish(engine)) == {(0, 0), (1, 0)}
    monkeypatch.setattr(reception_module, "MAX_PIXEL_BYTES", one // 2)
    qwen.add(engine, 3, parts, greedy(4))  # nobody else is there
    assert finish(engine)[3, 0] == qwen.generate(parts, 4)
    assert not engine._reception.asked_images()


def test_a_model_whose_tower_does_not_run_serves_text(qwen: Eyes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QwenEncoder, "features", lambda *_: 1 / 0)
    config = EngineConfig(name="tiny", source=str(qwen.directory), dtype="float32", device="cpu", threads=1)
    engine, info = build_engine(config, lambda *_: None)
    assert info.images is None
    assert info.notes[-1] == "it answers text alone: its tower does not run (ZeroDivisionError)"
    qwen.add(engine, 0, [TEXT], greedy(4))
    assert finish(engine)[0, 0] == qwen.generate([TEXT], 4)


def test_a_tower_of_another_width_than_the_decoder_sees_nothing(tmp_path: Path) -> None:
    """It would fail a step, and all that are in it."""
    wide = VISION_FAMILIES["qwen2_5_vl"]["vision_config"] | {"out_hidden_size": 32}
    AutoConfig.for_model(**VISION_FAMILIES["qwen2_5_vl"] | {"vision_config": wide}).save_pretrained(tmp_path)
    config = EngineConfig(name="tiny", source=f"random://{tmp_path}", dtype="float32", device="cpu", threads=1)
    _, info = build_engine(config, lambda *_: None)
    assert info.images is None and info.notes[-1] == "it answers text alone: its tower does not run (ValueError)"


def test_without_a_word_of_how_images_are_cut_it_answers_text(qwen: Eyes, tmp_path: Path) -> None:
    directory = shutil.copytree(qwen.directory, tmp_path / "model")
    (directory / "preprocessor_config.json").unlink()
    config = EngineConfig(name="tiny", source=str(directory), dtype="float32", device="cpu", threads=1)
    _, info = build_engine(config, lambda *_: None)
    assert info.images is None
    assert info.notes[-1].startswith("it answers text alone: there is no preprocessor_config.json")


def test_a_model_that_sees_in_an_unknown_way_says_so(qwen: Eyes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FAMILIES, "qwen2_5_vl")
    config = EngineConfig(name="tiny", source=str(qwen.directory), dtype="float32", device="cpu", threads=1)
    _, info = build_engine(config, lambda *_: None)
    assert info.images is None
    assert "it answers text alone: images of models of the type qwen2_5_vl are not taken here" in info.notes


def test_a_step_has_memory_beside_an_image_that_is_half_encoded(qwen: Eyes, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, whose memory here is made up: 3 more bytes are held each time that encoding stops."""
    held = iter(range(0, 3000, 3))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: next(held))

    def peak_of(step: Any, device: torch.device) -> int:
        step()
        return 1000

    monkeypatch.setattr(sight_module, "peak_bytes", peak_of)
    runner: Any = make_engine(qwen.directory)._runner
    found = runner.sight.rehearse()
    assert found.peak == 1000 and found.between % 3 == 0 and found.between >= 30
    runner.activation_bytes = 999
    runner._rehearse_images(runner.sight)
    assert runner.activation_bytes > 1000


def test_no_rank_encodes_images_where_one_of_them_fails(qwen: Eyes, monkeypatch: pytest.MonkeyPatch) -> None:
    sight: Any = make_engine(qwen.directory)._runner.sight  # type: ignore[attr-defined]
    assert isinstance(sight.try_rehearsal(bool), sight_module.Rehearsed)
    assert sight.try_rehearsal(lambda _: False) == "on another rank"
    monkeypatch.setattr(sight.encoder, "encode", {}.__getitem__)
    assert sight.try_rehearsal(bool) == "KeyError"
