"""What sees is counted as it is built, and what images take as the engine sets it aside and transformers uses it."""

import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.config import EngineConfig
from engine.execution import sight as sight_module
from engine.models.cuts import Cutter
from engine.models.vision import FAMILIES
from engine.models.vision_windows import replace_windows
from engine.sizing.fit import fit
from engine.sizing.formulas import shape_of
from engine.sizing.shape import ModelShape
from engine.sizing.speed import sent_bytes, step_costs
from engine.sizing.split import most_ranks, split_of
from engine.sizing.towers import CROSS_IMAGES, IMAGE_CACHE_BYTES, TEXT_TYPES, Tower
from engine.weights.random_model import shipped_config
from tests.engine.sizing.test_parts import prefix_of
from tests.engine.test_oracle import make_engine
from tests.tiny_models import VISION_FAMILIES, auto_class

SEEING = {"qwen2_5_vl": "qwen2_5_vl", "mllama": "mllama", "gemma3": "gemma3_vision"}
"""The tiny models of the kinds that are counted."""
QWEN, LLAMA = "Qwen2.5-VL-7B", "Llama-3.2-11B-Vision"
H100_BYTES = 81_559 * 2**20
GEMMA_3_4B = {
    "model_type": "gemma3",
    "mm_tokens_per_image": 256,
    "text_config": {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
        "sliding_window": 1024,
    },
    "vision_config": {
        "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "image_size": 896,
        "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False,
    },
}  # fmt: skip
"""As it is published: what it leaves out its type has."""


def shape_for(config: dict[str, Any], ranks: int = 1) -> ModelShape:
    shape = shape_of(config, ranks)
    assert shape is not None
    return shape


def tower_for(config: dict[str, Any]) -> Tower:
    tower = shape_for(config).tower
    assert tower is not None
    return tower


def shipped(name: str, ranks: int = 1) -> ModelShape:
    return shape_for(shipped_config(name) or {}, ranks)


def built(options: dict[str, Any], device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Any:
    from transformers import AutoConfig

    with torch.device(device):
        config = AutoConfig.for_model(**options)
        return auto_class(config).from_config(config, dtype=dtype).eval()


def test_each_kind_that_is_counted_is_tried() -> None:
    assert set(SEEING) == set(TEXT_TYPES) == sight_module.SHARED_TYPES


@pytest.mark.parametrize("family", SEEING.values())
def test_weights_cache_and_room_for_images_are_those_of_the_model_that_is_built(
    family: str, tiny_model_dir: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tiny_model_dir(family)
    shape = shape_for(json.loads((directory / "config.json").read_text()))
    runner: Any = make_engine(directory)._runner
    assert shape.weight_bytes(4) == runner.loaded.weights_bytes
    assert shape.context == runner.loaded.max_context and shape.vocab_size == runner.loaded.vocab_size
    assert {layer: part.k_dim for layer, part in shape.cache.items()} == {
        layer: cache.k.shape[2] for layer, cache in runner.caches.items()
    }
    assert shape.tower is not None
    for left in (1000.0, 1e5, 1e7, 1e12):
        monkeypatch.setattr(sight_module, "memory_budget", lambda *_, left=left: left)
        runner.sight.allocate(0)
        assert shape.tower.kept_bytes(left, 4, shape.context) == runner.sight.num_bytes


@pytest.mark.parametrize("kind", SEEING)
def test_each_rank_has_all_of_the_tower(kind: str) -> None:
    model = built(VISION_FAMILIES[SEEING[kind]], "meta")
    whole, prefix = model.config.to_dict(), prefix_of(model)
    assert most_ranks(whole, 4) == 4
    for ranks in (2, 4):
        cutter = Cutter(split_of(model.config.get_text_config().to_dict(), ranks), ranks - 1, prefix)
        parts = ((path, parameter.shape) for path, parameter in model.named_parameters())
        cuts = ((size, cutter.cut(path, size)) for path, size in parts)
        numbers = sum((size if cut is None else cut.shape_of(size)).numel() for size, cut in cuts)
        shape = shape_for(whole, ranks)
        assert shape.parameters == numbers and shape.tower == shape_for(whole).tower


def test_what_a_published_file_leaves_to_its_type_is_known() -> None:
    model = built(GEMMA_3_4B, "meta")
    shape = shape_for(GEMMA_3_4B)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters()) == 4_300_079_472
    assert (shape.is_tied, shape.context) == (True, 131_072) and most_ranks(GEMMA_3_4B, 8) == 8


def test_a_file_without_parts_is_of_the_same_model() -> None:
    """As Qwen publishes them; the tower's channels have another name there."""
    config = shipped_config(QWEN) or {}
    vision = {name: size for name, size in config["vision_config"].items() if name != "in_channels"}
    flat = {**config["text_config"], **config, "vision_config": vision | {"in_chans": 3}}
    del flat["text_config"]
    assert shape_for(flat) == shipped(QWEN) and shape_for(flat, 2) == shipped(QWEN, 2)
    assert most_ranks(flat, 8) == most_ranks(config, 8) == 4


def test_one_word_for_the_whole_model_says_whether_its_head_is_tied() -> None:
    config = shipped_config(QWEN) or {}
    assert shape_for(config | {"tie_word_embeddings": True}).is_tied
    assert not shape_for(config | {"text_config": config["text_config"] | {"tie_word_embeddings": True}}).is_tied


def test_of_what_sees_otherwise_nothing_is_said() -> None:
    config = shipped_config(QWEN) or {}
    assert shape_of(config | {"model_type": "qwen2_vl"}) is None
    assert shape_of({name: part for name, part in config.items() if name != "vision_config"}) is None
    assert shape_of(config | {"vision_config": {"depth": 32}}) is None
    clip = GEMMA_3_4B["vision_config"] | {"model_type": "clip_vision_model"}  # type: ignore[operator]
    assert shape_of(GEMMA_3_4B | {"vision_config": clip}) is None


class Peak(TorchDispatchMode):
    """Adds up the tensors that operations make, and knows the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[int, int] = {}
        self.num_bytes = 0
        self.between = 0
        """The most where a layer began."""

    def watch(self, tower: torch.nn.Module) -> None:
        layers = (part for part in tower.modules() if isinstance(part, torch.nn.ModuleList))
        for layer in (layer for part in layers for layer in part):
            layer.register_forward_pre_hook(self._begin)

    def _begin(self, *_: object) -> None:
        self.between = max(self.between, sum(self._held.values()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in self._tensors((args, kwargs))}
        for storage in [tensor.untyped_storage() for tensor in self._tensors(found)]:
            key = storage._cdata
            if key not in self._held and key not in given:
                self._held[key] = storage.nbytes()
                weakref.finalize(storage, self._held.pop, key)
        self.num_bytes = max(self.num_bytes, sum(self._held.values()))
        return found

    @staticmethod
    def _tensors(tree: Any) -> list[torch.Tensor]:
        return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize(
    ("kind", "vision", "context"),
    [
        ("qwen2_5_vl", {"hidden_size": 640, "intermediate_size": 1712, "num_heads": 8}, 64),
        ("qwen2_5_vl", {"hidden_size": 64, "intermediate_size": 684}, 64),
        ("mllama", {"hidden_size": 320, "intermediate_size": 1280, "num_hidden_layers": 5, "image_size": 224,
          "vision_output_dim": 960}, 512),
        (
            "mllama",
            {
                "hidden_size": 320, "intermediate_size": 320, "num_hidden_layers": 6, "num_global_layers": 2,
                "intermediate_layers_indices": [0, 1, 3, 4, 5], "vision_output_dim": 1920, "image_size": 224,
            },
            512,
        ),
        ("gemma3", {"hidden_size": 288, "intermediate_size": 1076}, 512),
    ],
)  # fmt: skip
def test_the_largest_image_takes_what_is_counted(kind: str, vision: dict[str, Any], context: int) -> None:
    options = VISION_FAMILIES[SEEING[kind]]
    model = built(options | {"vision_config": options["vision_config"] | vision})
    replace_windows(model)
    encoder: Any = FAMILIES[kind](SimpleNamespace(model=model, hf_config=model.config, directory=Path("none")))  # type: ignore[arg-type]
    image = encoder.example(context)
    peak = Peak()
    peak.watch(next(part for name, part in model.named_modules() if name.rpartition(".")[2].startswith("vis")))
    with peak:
        encoder.encode(image)
    tower = tower_for(model.config.to_dict())
    assert tower.step_bytes(0, 2, context) == pytest.approx(peak.num_bytes, rel=0.02)
    step = 1 << 40
    assert tower.step_bytes(step, 2, context) - step == pytest.approx(peak.between, rel=0.02)


def test_qwens_largest_image_is_bounded_by_pixels_and_by_the_context() -> None:
    tower = shipped(QWEN).tower
    assert tower is not None and tower.units == 16384
    assert tower.step_bytes(0, 2, 4096) * 4 == tower.step_bytes(0, 2, 128_000)
    assert tower.kept_bytes(0, 2, 4096) * 4 == tower.kept_bytes(0, 2, 128_000) == 16384 * 3584 * 2


def settings(quantization: Any = "none", **others: Any) -> EngineConfig:
    return EngineConfig(name="m", source="m", quantization=quantization, **others)


def test_a_fit_leaves_room_for_the_tower_and_for_images() -> None:
    kept = {QWEN: IMAGE_CACHE_BYTES, LLAMA: CROSS_IMAGES * 4 * 1601 * 8 * 2 * 8 * 128 * 2}
    for name, images in kept.items():
        shape = shipped(name)
        found, blind = (fit(one, settings(), H100_BYTES) for one in (shape, replace(shape, tower=None)))
        assert found.images == images and blind.images == 0
        assert found.weights == blind.weights + 2 * shape.tower_numbers and found.step > blind.step
        more = found.weights + found.step + found.images - blind.weights - blind.step
        token = sum(layer.elements for layer in shape.cache.values()) * 2
        assert blind.kv_tokens - found.kv_tokens == pytest.approx(more * 0.97 / token, abs=17)
    assert fit(shipped(QWEN), settings(context=4096), H100_BYTES).step < fit(shipped(QWEN), settings(), H100_BYTES).step


def test_where_little_is_left_images_that_tokens_look_at_get_a_part_of_it() -> None:
    found = fit(shipped(LLAMA), settings(), 34 * 2**30)
    assert found.kv_tokens > 0
    assert 0 < found.images < CROSS_IMAGES * 4 * 1601 * 32768


def test_a_tower_is_neither_in_fp8_nor_read_in_decoding_steps() -> None:
    for name in (QWEN, LLAMA):
        shape = shipped(name)
        blind = replace(shape, tower=None)
        for storage in ("plain", "quantized", "stored"):
            assert shape.weight_bytes(2, storage) == blind.weight_bytes(2, storage) + 2 * shape.tower_numbers
        for quantization in ("none", "fp8"):
            assert step_costs(shape, settings(quantization)) == step_costs(blind, settings(quantization))


def test_steps_without_images_skip_layers_in_which_tokens_look_at_them() -> None:
    shape, layer = shipped(LLAMA), 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    read = step_costs(shape, settings()).step_bytes
    assert shape.weight_bytes(2) - 2 * (shape.embedding + shape.tower_numbers) - read == 8 * 2 * layer
    assert sent_bytes(shipped(LLAMA, 2), 1, 2) == (65 * 2 * 4096 + 128_256) * 2 / 2
    assert shipped(QWEN).of_text == replace(shipped(QWEN), tower=None)
