"""The checks of `tests/gpu` on the CPU: they pass where the engine is right, and fail where it is not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.execution.model_runner import ModelRunner
from engine.sampling_params import SamplingParams
from tests.engine.test_oracle import make_engine
from tests.gpu import checks

TinyModelDir = Callable[[str], Path]


def test_logits(tiny_model_dir: TinyModelDir, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tiny_model_dir("llama")
    checks.logits_are_as_good_as_transformers(directory, "cpu", torch.float32)
    whole = ModelRunner._logits

    def noisy(self: ModelRunner, *arguments: torch.Tensor) -> torch.Tensor:
        return whole(self, *arguments) * 1.01

    monkeypatch.setattr(ModelRunner, "_logits", noisy)
    with pytest.raises(AssertionError):
        checks.logits_are_as_good_as_transformers(directory, "cpu", torch.float32)


@pytest.mark.parametrize("options", [{"quantization": "fp8"}, {"kv_dtype": "fp8"}])
def test_logits_in_fp8(options: dict[str, str], tiny_model_dir: TinyModelDir) -> None:
    """In bf16, within their bound, and beyond that of bf16 itself. Not every CPU can pack linears in bf16."""
    directory = tiny_model_dir("qwen2")

    def check(ratio: float) -> None:
        checks.logits_are_as_good_as_transformers(
            directory, "cpu", torch.bfloat16, ratio=ratio, attention="reference", fusion=False, **options
        )

    check(checks.FP8_ROUNDING_RATIO)
    with pytest.raises(AssertionError):
        check(1.0)


def test_tokens(tiny_model_dir: TinyModelDir) -> None:
    for options in ({"graphs": True}, {"overlap": True, "attention": "sdpa"}):
        checks.every_way_says_what_generate_says(tiny_model_dir("llama"), "cpu", **options)


def test_lack_of_memory(tiny_model_dir: TinyModelDir, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(tiny_model_dir("llama"), max_batched_tokens=128, context=400, num_blocks=200)
    whole = ModelRunner._forward

    def take_memory() -> Callable[[], None]:
        def forward(self: ModelRunner, batch: object, *rest: object) -> torch.Tensor:
            if len(batch.input_ids) > 40:  # type: ignore[attr-defined]
                raise torch.OutOfMemoryError("made up")
            return whole(self, batch)  # type: ignore[arg-type]

        monkeypatch.setattr(ModelRunner, "_forward", forward)
        return monkeypatch.undo

    assert checks.the_engine_outlives_a_lack_of_memory(engine, take_memory, long=200) > 0


def test_constraints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    checks.constrained_rows_leave_free_ones_alone("cpu")


def test_draws(tiny_model_dir: TinyModelDir, monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(max_tokens=1, temperature=0.7, top_k=12)
    monkeypatch.setattr(checks, "DRAWS", 512)
    checks.draws_follow_the_probabilities(tiny_model_dir("llama"), "cpu", params)
    whole = checks.reference_distribution

    def other(logits: torch.Tensor, *arguments: object) -> torch.Tensor:
        return whole(logits * 0.5, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(checks, "reference_distribution", other)
    with pytest.raises(AssertionError):
        checks.draws_follow_the_probabilities(tiny_model_dir("llama"), "cpu", params)
