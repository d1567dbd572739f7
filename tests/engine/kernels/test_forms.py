"""A load builds all kernels that a step may need: steps of any shape against what `StepForms` launch."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs triton, which comes with torch for CUDA and with make test on Linux")

from tests.engine.kernels.noted import load, noting, some_step, take
from tests.tiny_models import FAMILIES, MIXTURES

STEPS = 100


FORMS = {
    "padded": {},
    "lazy": {"graphs": "lazy"},
    "plain": {"graphs": False},
    "three": {"graphs": False, "max_num_seqs": 3},
    "fp8": {"quantization": "fp8", "kv_dtype": "fp8"},
    "plain fp8": {"quantization": "fp8", "kv_dtype": "fp8", "graphs": False, "max_num_seqs": 3},
}


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES])
@pytest.mark.parametrize("form", FORMS)
def test_no_step_has_a_kernel_that_the_load_did_not_build(
    family: str, form: str, tiny_model_dir: Callable[[str], Path]
) -> None:
    dice = random.Random(family)
    with noting() as noted:
        runner = load(tiny_model_dir(family), **{"max_num_seqs": 40, "max_batched_tokens": 2048, **FORMS[form]})
        built = set(noted.builds)
        for _ in range(STEPS):
            take(runner, some_step(runner, dice))
    assert len(built) > 10
    assert not [f"{name} {kinds}" for name, kinds in noted.builds.keys() - built]
