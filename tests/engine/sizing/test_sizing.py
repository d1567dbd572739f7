"""Sizes by arithmetic are those of the models that are built, and of the GPUs that were measured."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.models.experts import Fp8Experts
from engine.models.fp8 import Fp8Linear
from engine.sizing.fit import fit
from engine.sizing.formulas import shape_of
from engine.sizing.shape import ModelShape
from engine.weights.random_model import architecture_names, shipped_config
from tests.engine.models.test_fp8 import load_from
from tests.engine.test_oracle import make_engine
from tests.engine.weights.test_sources import PARAMETERS
from tests.places import ROOT
from tests.tiny_models import FAMILIES

RESULTS = ROOT / "bench" / "results"
H100_BYTES = 81_559 * 2**20
"""Of the one that was measured, as nvidia-smi tells it."""
BOUND = 0.02
"""How far the tokens of a KV cache may be from what was measured, which docs/models.md states."""


def shipped(name: str) -> ModelShape:
    shape = shape_of(shipped_config(name) or {})
    assert shape is not None
    return shape


@pytest.mark.parametrize("name", architecture_names())
def test_parameters_are_counted_to_the_number(name: str) -> None:
    assert shipped(name).parameters == PARAMETERS[name]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_weights_and_cache_are_those_of_the_model_that_is_built(
    family: str, tiny_model_dir: Callable[[str], Path]
) -> None:
    directory = tiny_model_dir(family)
    shape = shape_of(json.loads((directory / "config.json").read_text()))
    assert shape is not None
    runner: Any = make_engine(directory)._runner
    assert shape.weight_bytes(4) == runner.loaded.weights_bytes
    assert shape.context == runner.loaded.max_context and shape.vocab_size == runner.loaded.vocab_size
    widths = {layer: (part.num_kv_heads, part.k_dim, part.v_dim) for layer, part in shape.cache.items()}
    assert widths == {
        layer: (cache.k.shape[0], cache.k.shape[2], cache.v.shape[2]) for layer, cache in runner.caches.items()
    }


@pytest.mark.parametrize("architecture", ["Llama-3.1-8B", "Qwen2.5-7B", "Phi-4", "Gemma-2-2b"])
def test_weights_in_fp8_are_those_of_the_model_that_is_quantised(architecture: str) -> None:
    small = "num_hidden_layers=3&hidden_size=64&intermediate_size=96&vocab_size=320&num_attention_heads=4"
    query = f"{small}&num_key_value_heads=2" + ("&head_dim=16" if architecture.startswith(("Ll", "Ge")) else "")
    if architecture == "Phi-4":  # its marks of padding and of the end stand beyond so few tokens
        query += "&pad_token_id=0&eos_token_id=2&bos_token_id=1"
    source = f"random://{architecture}?{query}"
    loaded = load_from(source, quantization="fp8")
    shape = shape_of(json.loads((loaded.directory / "config.json").read_text()))
    assert shape is not None
    scales = sum(4 * linear.outputs for linear in shape.in_fp8("quantized"))
    assert shape.weight_bytes(4, "quantized") == loaded.weights_bytes + scales


def test_experts_in_fp8_are_those_of_the_model_that_is_quantised(tiny_model_dir: Callable[[str], Path]) -> None:
    loaded = load_from(tiny_model_dir("deepseek_v3"), quantization="fp8")
    shape = shape_of(json.loads((loaded.directory / "config.json").read_text()))
    assert shape is not None and shape.experts is not None
    fp8 = [module for module in loaded.model.modules() if isinstance(module, Fp8Linear | Fp8Experts)]
    assert len([module for module in fp8 if isinstance(module, Fp8Experts)]) == shape.expert_layers - 1
    assert len([module for module in fp8 if isinstance(module, Fp8Linear)]) == len(shape.in_fp8("quantized"))
    scales = sum(scale.nbytes for module in fp8 for scale in module.buffers())
    offsets = sum(4 * linear.outputs for linear in shape.in_fp8("quantized"))  # without a text to read there are none
    assert shape.weight_bytes(4, "quantized") == loaded.weights_bytes + scales + offsets


def test_deepseek_r1_in_fp8_takes_about_a_byte_for_a_number() -> None:
    shape = shipped("DeepSeek-R1")
    assert 1 < shape.weight_bytes(2, "stored") / shape.parameters < 1.01
    more = shape.expert_bytes(2, "quantized") - shape.expert_bytes(2, "stored")
    assert more == pytest.approx(3 * 256 * 7168 * 2048, 1e-3)


def measured() -> list[tuple[str, str, int]]:
    """Each load of an H100 that was written down: file, model, and tokens of its KV cache."""
    found = []
    for path in sorted(RESULTS.glob("2026-11-26-gpu-*.json")):
        for name, parts in json.loads(path.read_text()).get("found", {}).items():
            if "kv_tokens" in parts.get("load", {}):
                found.append((path.stem, name, parts["load"]["kv_tokens"]))
    return found


@pytest.mark.parametrize(("run", "name", "tokens"), measured())
def test_a_fit_is_near_what_an_h100_gave(run: str, name: str, tokens: int) -> None:
    architecture, _, form = name.partition("@")
    config = EngineConfig(name=name, source=name, quantization="fp8" if form else "auto")
    assert fit(shipped(architecture), config, H100_BYTES).kv_tokens == pytest.approx(tokens, rel=BOUND)


def test_measurements_are_there() -> None:
    assert {name for _, name, _ in measured()} == {"Llama-3.1-8B", "Llama-3.1-8B@fp8", "Qwen2.5-1.5B"}


def test_what_does_not_fit_has_no_tokens_and_less_memory_less_context() -> None:
    config, eight = EngineConfig(name="m", source="m"), EngineConfig(name="m", source="m", quantization="fp8")
    large = shipped("Llama-3.3-70B")
    assert fit(large, config, H100_BYTES).kv_tokens == fit(large, config, H100_BYTES).context == 0
    assert fit(large, eight, H100_BYTES).kv_tokens == 0  # 141 GB of 16 bits would have to be read first
    assert 0 < fit(large, eight, H100_BYTES, fp8_files=True).context < large.context
    small = shipped("Llama-3.1-8B")
    found = fit(small, config, H100_BYTES)
    assert fit(small, EngineConfig(name="m", source="m", graphs="lazy"), H100_BYTES).kv_tokens < found.kv_tokens
    assert found.context == small.context and found.contexts == pytest.approx(found.kv_tokens / small.context)
    halved = EngineConfig(name="m", source="m", kv_dtype="fp8", context=4096)
    assert fit(small, halved, H100_BYTES).kv_tokens == pytest.approx(2 * found.kv_tokens, rel=0.01)
    assert fit(small, halved, H100_BYTES).context == 4096


def test_what_is_not_known_is_not_guessed() -> None:
    assert shape_of({"model_type": "mamba"}) is shape_of({}) is shape_of({"model_type": "llama"}) is None
    assert shape_of({**(shipped_config("Phi-4") or {}), "hidden_size": "wide"}) is None


def test_sizing_needs_no_torch() -> None:
    code = "import sys, server.commands.fits; print([n for n in ('torch', 'transformers') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
