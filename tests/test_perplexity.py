"""What FP8 costs the default model in perplexity, on text that comes with Python."""

import math
from pathlib import Path

import pytest

from tests.perplexity import FORMS, score, windows

COUNT, LENGTH = 4, 384
LIMIT = 0.01
"""What FP8 is meant to cost at most."""
BROKEN = 0.06
"""What no sound e4m3 costs; a wrong scale, or a weight in the wrong place, costs many times as much."""
MISSED = (
    "e4m3 has 3 bits of mantissa, which costs this model of 135M parameters more than 1 %: docs/models.md has the "
    "numbers, and what was looked at"
)


@pytest.fixture(scope="module")
def costs(smollm2_dir: Path) -> dict[str, float]:
    """By form, how much the perplexity grows, as a share."""
    prompts = windows(smollm2_dir / "tokenizer.json", COUNT, LENGTH)
    found = {name: sum(score(str(smollm2_dir), prompts, **form)) / COUNT for name, form in FORMS.items()}
    assert 5 < math.exp(found["unquantised"]) < 40
    return {name: math.expm1(loss - found["unquantised"]) for name, loss in found.items()}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_fp8_breaks_nothing(costs: dict[str, float]) -> None:
    assert all(0 < abs(cost) < BROKEN for name, cost in costs.items() if name != "unquantised"), costs


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [
        # At 1.1 % the cache alone is so near that another processor's rounding could bring it below.
        pytest.param(name, marks=pytest.mark.xfail(reason=MISSED, strict=name != "FP8 KV cache"))
        for name in FORMS
        if name != "unquantised"
    ],
)
def test_fp8_costs_at_most_one_per_cent(costs: dict[str, float], form: str) -> None:
    assert costs[form] <= LIMIT, costs[form]
