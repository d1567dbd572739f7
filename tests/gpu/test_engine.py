"""Engines on a GPU: against transformers, and each way of running a step against the others."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.build import build_engine
from engine.config import EngineConfig
from engine.sampling_params import SamplingParams
from tests.engine.test_oracle import make_engine
from tests.engine.test_sleep import wakes_as_it_was
from tests.gpu import checks
from tests.tiny_models import FAMILIES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

TinyModelDir = Callable[[str], Path]
MIB = 2**20
SIZES = "hidden_size=1024&intermediate_size=16384&num_hidden_layers=2&num_attention_heads=8&vocab_size=32000"


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_in_bf16_are_as_good_as_transformers(family: str, tiny_model_dir: TinyModelDir) -> None:
    checks.logits_are_as_good_as_transformers(tiny_model_dir(family), "cuda", torch.bfloat16)


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="needs a GPU with FP8 products"
)
@pytest.mark.parametrize("options", [{"quantization": "fp8"}, {"kv_dtype": "fp8"}])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_logits_in_fp8_are_near_those_in_bf16(
    family: str, options: dict[str, str], tiny_model_dir: TinyModelDir
) -> None:
    ratio = checks.FP8_ROUNDING_RATIO
    checks.logits_are_as_good_as_transformers(
        tiny_model_dir(family), "cuda", torch.bfloat16, ratio=ratio, attention="triton", **options
    )


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("attention", ["auto", "triton", "sdpa", "reference"])
def test_every_backend_says_what_generate_says(family: str, attention: str, tiny_model_dir: TinyModelDir) -> None:
    checks.every_way_says_what_generate_says(tiny_model_dir(family), "cuda", attention=attention)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize(
    ("graphs", "overlap"), [(True, True), (True, False), ("lazy", True), (False, True), (False, False)]
)
def test_recording_and_overlap_change_no_token(
    family: str, graphs: bool | str, overlap: bool, tiny_model_dir: TinyModelDir
) -> None:
    options = {"attention": "triton", "graphs": graphs, "overlap": overlap}
    runner = checks.every_way_says_what_generate_says(tiny_model_dir(family), "cuda", **options)
    assert (runner.padded is not None and runner.padded.decoding.num_recorded > 0) == bool(graphs)


@pytest.mark.parametrize("options", [{}, {"quantization": "fp8"}, {"kv_dtype": "fp8"}])
def test_what_wakes_is_recorded_again_and_says_what_it_said(
    options: dict[str, str], tiny_model_dir: TinyModelDir
) -> None:
    wakes_as_it_was(tiny_model_dir("llama"), device="cuda", dtype="bfloat16", attention="triton", **options)


def test_steps_are_not_recorded_where_the_backend_plans_on_the_host(tiny_model_dir: TinyModelDir) -> None:
    runner = make_engine(tiny_model_dir("llama"), device="cuda", attention="sdpa")._runner
    assert runner.padded is None and not runner.backend.capturable  # type: ignore[attr-defined]


def test_the_engine_outlives_a_lack_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is taken until none is left but 48 MiB; a prompt of 1,900 tokens wants 118 MiB for one product."""
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    config = EngineConfig(
        name="wide", source=f"random://llama?{SIZES}", device="cuda", attention="triton", num_blocks=600, context=2000,
        max_batched_tokens=8192, prefix_cache=False,
    )  # fmt: skip
    engine, _ = build_engine(config, lambda *_: None)
    failures = checks.the_engine_outlives_a_lack_of_memory(engine, take_all_memory_but(48 * MIB), long=1900)
    assert failures > 0, "memory did not run out"


def take_all_memory_but(left: int) -> Callable[[], Callable[[], None]]:
    """A function that takes the device's memory, and returns one that gives it back."""

    def take() -> Callable[[], None]:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        spare = torch.empty(left, dtype=torch.uint8, device="cuda")
        taken: list[torch.Tensor] = []
        size = 8192 * MIB
        while size >= 2 * MIB:
            try:
                taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
            except torch.OutOfMemoryError:
                size //= 2
        del spare
        torch.cuda.empty_cache()

        def give_back() -> None:
            taken.clear()
            torch.cuda.empty_cache()

        return give_back

    return take


def test_constrained_rows_leave_free_ones_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance", reason="needs llguidance, which compiles constraints")
    pytest.importorskip("outlines_core", reason="needs outlines_core, which the compiling process imports")
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    checks.constrained_rows_leave_free_ones_alone("cuda")


@pytest.mark.parametrize(
    "params",
    [
        pytest.param(SamplingParams(max_tokens=1), id="plain"),
        pytest.param(SamplingParams(max_tokens=1, temperature=0.7, top_k=12), id="top_k"),
        pytest.param(SamplingParams(max_tokens=1, temperature=1.3, top_p=0.8, min_p=0.01), id="top_p"),
        pytest.param(SamplingParams(max_tokens=1, repetition_penalty=1.4, logit_bias={7: 2.0}), id="penalties"),
    ],
)
def test_draws_follow_the_probabilities(params: SamplingParams, tiny_model_dir: TinyModelDir) -> None:
    checks.draws_follow_the_probabilities(tiny_model_dir("llama"), "cuda", params)
