"""The constraints that are measured are followed by the texts that stand beside them."""

from pathlib import Path

import pytest

from server.benchmarks.constraint_costs import Alone
from server.benchmarks.constraints import CASES, LOADS, Case


@pytest.fixture(scope="module")
def alone(smollm2_dir: Path) -> Alone:
    return Alone(smollm2_dir, size=49152, eos_token_ids=[2])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_mask_is_taken_before_each_token_of_a_text_that_follows(alone: Alone, case: Case) -> None:
    found = alone.measure(case)  # raises where a token is not allowed
    assert found["tokens"] >= 4 and found["mask_us"]["p50"] <= found["mask_us"]["p99"] and found["compile_ms"] > 0


def test_loads_have_one_that_is_free() -> None:
    assert [kind for kind, schema in LOADS.items() if schema is None] == ["free"]
