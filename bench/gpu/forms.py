"""Models by name and form: what `NAME`, `NAME@fp8` and the like mean to the engine."""

import json
from pathlib import Path
from typing import Any

import torch

from engine.cache import cache_dir
from engine.config import EngineConfig
from engine.weights.random_model import random_model_dir

STORED = "fp8files"
"""As a checkpoint in FP8 has a model: `NAME@fp8files` is drawn in FP8, module by module."""
FORMS: dict[str, dict[str, Any]] = {
    "": {},
    "fp8": {"quantization": "fp8"},
    "fp8+kv8": {"quantization": "fp8", "kv_dtype": "fp8"},
    STORED: {"quantization": "fp8"},
}
BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
"""`quantization_config` of DeepSeek-R1's checkpoint, as far as it is read."""


def config_of(
    spec: str, device: torch.device, *, context: int, max_num_seqs: int, ranks: int = 1, prefix_cache: bool = False
) -> EngineConfig:
    """The engine's configuration for `NAME`, `NAME@fp8` (weights), `NAME@fp8+kv8` (KV cache too) or `NAME@fp8files`.

    NAME is what may stand behind random://. Raises ModelLoadError where it is not, KeyError for another form.
    """
    model, _, form = spec.partition("@")
    return EngineConfig(
        name=spec, source=f"random://{_stored(model) if form == STORED else model}", device=str(device),
        context=context, prefix_cache=prefix_cache, max_num_seqs=max_num_seqs, tensor_parallel=ranks, **FORMS[form],
    )  # fmt: skip


def is_stored(spec: str) -> bool:
    """Whether a model is drawn as a checkpoint in FP8 has it."""
    return spec.partition("@")[2] == STORED


def text_config(config: EngineConfig) -> dict[str, Any]:
    """The config.json of a random model. Raises ModelLoadError."""
    directory = random_model_dir(config.source.removeprefix("random://"))
    return dict(json.loads((directory / "config.json").read_text(encoding="utf-8")))


def _stored(model: str) -> Path:
    """A configuration in the cache that says of a model that its files are in FP8."""
    directory = random_model_dir(model)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    path = cache_dir() / "bench" / f"{directory.name}-{STORED}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config | {"quantization_config": BLOCKS}), encoding="utf-8")
    return path
