"""FP8 on a GPU: products by `torch._scaled_mm`, and engines whose weights and caches are in FP8."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.device.device import FP8_CAPABILITY
from tests.gpu import fp8_checks

HAS_FP8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= FP8_CAPABILITY
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_FP8, reason="needs a CUDA GPU of compute capability 8.9 or newer"),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("rows", "width", "outputs"), [(1, 64, 96), (3, 576, 1536), (64, 4096, 6144), (300, 1536, 48)])
def test_products_are_right(dtype: torch.dtype, rows: int, width: int, outputs: int) -> None:
    for bias in (False, True):
        fp8_checks.products_are_right("cuda", dtype, rows, width, outputs, bias=bias)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "phi3"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_scores_stay(family: str, dtype: str, tiny_model_dir: Callable[[str], Path]) -> None:
    fp8_checks.scores_stay(tiny_model_dir(family), "cuda", attention="triton", dtype=dtype)


def test_decoding_steps_are_recorded(tiny_model_dir: Callable[[str], Path]) -> None:
    engine = fp8_checks.steps_run(tiny_model_dir("llama"), "cuda", attention="triton", dtype="bfloat16", graphs=True)
    assert engine._runner.padded.decoding.num_recorded > 0
