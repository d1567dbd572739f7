"""What FP8 costs the default model in perplexity, on text that comes with Python."""

import math
from pathlib import Path

import pytest

from tests.perplexity import FORMS, score, windows

COUNT, LENGTH = 4, 384
LIMIT = 0.01
"""What FP8 may cost."""


@pytest.fixture(scope="module")
def costs(smollm2_dir: Path) -> dict[str, float]:
    """By form, how much the perplexity grows, as a share."""
    prompts = windows(smollm2_dir / "tokenizer.json", COUNT, LENGTH)
    forms = ("unquantised", "FP8 KV cache", "FP8 weights")
    found = {name: sum(score(str(smollm2_dir), prompts, **FORMS[name])) / COUNT for name in forms}
    assert 5 < math.exp(found["unquantised"]) < 40
    return {name: math.expm1(loss - found["unquantised"]) for name, loss in found.items()}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("form", ["FP8 KV cache", "FP8 weights"])
def test_fp8_costs_at_most_one_per_cent(costs: dict[str, float], form: str) -> None:
    assert abs(costs[form]) > 0 and costs[form] <= LIMIT, costs
