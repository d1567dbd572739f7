"""Models that two GPUs share: over NCCL what one rank says, recorded and eagerly; put away; and without a rank."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.device.device import FP8_CAPABILITY
from tests.gpu.rank_checks import RANKS, outcome
from tests.tiny_models import FAMILIES, build_tiny_model

COUNT = torch.cuda.device_count() if torch.cuda.is_available() else 0
HAS_FP8 = COUNT > 0 and torch.cuda.get_device_capability() >= FP8_CAPABILITY
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(COUNT < RANKS, reason=f"needs {RANKS} CUDA GPUs, and torch sees {COUNT}"),
]
needs_fp8 = pytest.mark.skipif(COUNT > 0 and not HAS_FP8, reason="needs GPUs of compute capability 8.9 or newer")

TinyModelDir = Callable[[str], Path]
SHARED = ("llama", "qwen2", "qwen3", "gemma2", "phi3", "deepseek_v3")
SMALL = {
    "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "num_attention_heads": 16,
    "num_key_value_heads": 4, "vocab_size": 32001,
}  # fmt: skip
"""Of a model that is not tiny: 70 million numbers, and a vocabulary that two do not divide."""


@pytest.fixture(scope="module")
def small_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(FAMILIES, "small", FAMILIES["llama"] | SMALL)
        return build_tiny_model("small", tmp_path_factory.mktemp("small"))


@pytest.mark.parametrize("family", SHARED)
def test_two_gpus_say_what_generate_says(family: str, tiny_model_dir: TinyModelDir) -> None:
    assert outcome("cuda", "tokens", tiny_model_dir(family), attention="triton") == "right"


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"attention": "triton", "graphs": False}, id="eagerly"),
        pytest.param({"attention": "triton", "graphs": "lazy"}, id="recorded when needed"),
        pytest.param({"attention": "triton", "overlap": False}, id="without overlap"),
        pytest.param({"attention": "auto"}, id="as it is measured to be best"),
        pytest.param({"attention": "sdpa", "fusion": False}, id="unfused"),
    ],
)
def test_other_ways_say_the_same(options: dict[str, Any], tiny_model_dir: TinyModelDir) -> None:
    assert outcome("cuda", "tokens", tiny_model_dir("llama"), **options) == "right"


@pytest.mark.parametrize("family", SHARED)
def test_logits_in_bf16_are_as_good_as_transformers(family: str, tiny_model_dir: TinyModelDir) -> None:
    assert outcome("cuda", "logits", tiny_model_dir(family)) == "right"


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="bf16"),
        pytest.param({"quantization": "fp8"}, id="fp8", marks=needs_fp8),
        pytest.param({"quantization": "fp8", "kv_dtype": "fp8"}, id="fp8, kv fp8", marks=needs_fp8),
    ],
)
def test_logits_of_a_small_model(options: dict[str, Any], small_model_dir: Path) -> None:
    assert outcome("cuda", "logits", small_model_dir, attention="triton", **options) == "right"


def test_experts_in_fp8(tiny_model_dir: TinyModelDir) -> None:
    if not HAS_FP8:
        pytest.skip("needs GPUs of compute capability 8.9 or newer")
    assert outcome("cuda", "logits", tiny_model_dir("deepseek_v3"), attention="triton", quantization="fp8") == "right"


@pytest.mark.parametrize("options", [{}, pytest.param({"quantization": "fp8"}, marks=needs_fp8)])
def test_what_wakes_says_what_it_said(options: dict[str, Any], tiny_model_dir: TinyModelDir) -> None:
    options = {"attention": "triton", "dtype": "bfloat16", **options}
    assert outcome("cuda", "sleeps", tiny_model_dir("llama"), **options) == "right"


@pytest.mark.parametrize("graphs", [True, False])
def test_a_rank_that_is_killed_in_a_step_ends_the_other(graphs: bool, tiny_model_dir: TinyModelDir) -> None:
    assert outcome("cuda", "dies", tiny_model_dir("llama"), attention="triton", graphs=graphs) == "right"
