"""What FP8 costs the default model in perplexity, on text that comes with Python."""

import math
from pathlib import Path

import pytest

from tests.perplexity import FORMS, score, windows

COUNT, LENGTH = 3, 256


@pytest.fixture(scope="module")
def costs(smollm2_dir: Path) -> dict[str, float]:
    """By form, how much the perplexity grows, as a share."""
    prompts = windows(smollm2_dir / "tokenizer.json", COUNT, LENGTH)
    found = {name: sum(score(str(smollm2_dir), prompts, **form)) / COUNT for name, form in FORMS.items()}
    assert 5 < math.exp(found["unquantised"]) < 40
    return {name: math.expm1(loss - found["unquantised"]) for name, loss in found.items()}
