"""The checks of `tests/gpu` for models that GPUs share, on two ranks on the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import rank_checks

TinyModelDir = Callable[[str], Path]


@pytest.mark.parametrize(
    ("check", "options"),
    [
        ("dies", {"threads": 1}),
        pytest.param("tokens", {"graphs": True, "attention": "reference"}, marks=pytest.mark.slow),
        pytest.param("sleeps", {"fusion": False}, marks=pytest.mark.slow),
        pytest.param("logits", {"attention": "reference", "fusion": False}, marks=pytest.mark.slow),
    ],
)
def test_what_is_right_passes(check: str, options: dict[str, Any], tiny_model_dir: TinyModelDir) -> None:
    assert rank_checks.outcome("cpu", check, tiny_model_dir("llama"), **options) == "right"


def test_what_goes_wrong_is_told(tmp_path: Path) -> None:
    assert "config.json" in rank_checks.outcome("cpu", "tokens", tmp_path)
