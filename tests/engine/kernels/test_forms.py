"""A load builds all kernels that a step may need: steps of any shape against what `StepForms` launch."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="needs triton, which comes with torch for CUDA and with make test on Linux")

from tests.engine.kernels.noted import load, noting, some_step, take
from tests.tiny_models import FAMILIES, MIXTURES

STEPS = 80
FP8 = {"quantization": "fp8", "kv_dtype": "fp8"}
FEW: dict[str, Any] = {"graphs": False, "max_num_seqs": 3}
CASES = [
    *[(family, {}) for family in FAMILIES],
    *[(family, FEW | FP8) for family in MIXTURES],
    *[
        (family, options)
        for family in ("gemma2", "deepseek_v3")
        for options in (
            {"graphs": "lazy"},
            {"graphs": False},
            FEW,
            FP8,
            FEW | FP8,
            {"max_num_seqs": 1},
            FEW | {"context": 40},
        )
    ],
]


@pytest.mark.parametrize(("family", "options"), CASES)
def test_no_step_has_a_kernel_that_the_load_did_not_build(
    family: str, options: dict[str, Any], tiny_model_dir: Callable[[str], Path]
) -> None:
    dice = random.Random(family)
    with noting() as noted:
        runner = load(tiny_model_dir(family), **{"max_num_seqs": 40, "max_batched_tokens": 2048, **options})
        built = set(noted.builds)
        for _ in range(STEPS):
            take(runner, some_step(runner, dice))
    assert len(built) > 10
    assert not [f"{name} {kinds}" for name, kinds in noted.builds.keys() - built]
