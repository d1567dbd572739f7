"""FP8 on two ranks: checkpoints read in parts, weights quantised in parts, and a cache in FP8."""

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.engine import Engine
from engine.messages import AddRequest
from engine.sampling_params import SamplingParams
from tests.engine.models.test_fp8 import write_checkpoint
from tests.engine.ranks.engines import shared_engine
from tests.engine.test_oracle import make_engine

TinyModelDir = Callable[[str], Path]
PROMPT = [(7 * i) % 317 + 3 for i in range(40)]
SAID = SamplingParams(max_tokens=0, temperature=0, prompt_logprobs=0)
LOSS = 1.5
"""How much farther from what was not rounded two ranks may be than one: rounding has other neighbours in a part."""


def scores(engine: Engine) -> list[float]:
    """Log-probabilities of the prompt's tokens."""
    engine.add(AddRequest(1, PROMPT, SAID))
    found: list[float] = []
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            found += [entry.logprob for entry in output.prompt_logprobs or []]
    assert len(found) == len(PROMPT) - 1
    return found


def distance(found: list[float], wanted: list[float]) -> float:
    """On average."""
    return sum(abs(a - b) for a, b in zip(found, wanted, strict=True)) / len(found)


@pytest.mark.parametrize(
    ("layout", "family"),
    [
        ("fp8, by block", "qwen2"),
        pytest.param("compressed-tensors, by channel", "llama", marks=pytest.mark.slow),
        pytest.param("fp8, by tensor", "llama", marks=pytest.mark.slow),
    ],
)
def test_checkpoints(layout: str, family: str, tiny_model_dir: TinyModelDir, tmp_path: Path) -> None:
    write_checkpoint(tiny_model_dir(family), tmp_path / "model", layout)
    plain = scores(make_engine(tmp_path / "model", quantization="none"))
    with shared_engine(tmp_path / "model", quantization="none") as engine:
        assert scores(engine) == pytest.approx(plain, abs=1e-3)
    with shared_engine(tmp_path / "model") as engine:
        assert 0 < distance(scores(engine), plain) < LOSS * distance(scores(make_engine(tmp_path / "model")), plain)


def test_quantised_when_loaded_with_a_cache_in_fp8(tiny_model_dir: TinyModelDir) -> None:
    options = {"quantization": "fp8", "kv_dtype": "fp8", "attention": "reference"}
    plain, alone = scores(make_engine(tiny_model_dir("llama"))), scores(make_engine(tiny_model_dir("llama"), **options))
    with shared_engine(tiny_model_dir("llama"), **options) as engine:
        assert 0 < distance(scores(engine), plain) < LOSS * distance(alone, plain)
        assert engine._runner._runner.loaded.fp8_linears == 14  # type: ignore[attr-defined]
