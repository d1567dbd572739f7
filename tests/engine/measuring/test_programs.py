"""The measuring programs print what `headrace bench` reads."""

import json

import pytest
import torch

from engine.costs import Ceilings
from engine.measuring import ceilings, step


def test_the_parts_of_a_step_are_told_of_each_case(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        assert step.main(["--running", "1", "3", "--steps", "6", "--context", "40"]) == 0
    finally:
        torch.set_num_threads(threads)
    cases = json.loads(capsys.readouterr().out)
    assert [(case["case"], case["running"]) for case in cases] == [("decode", 1), ("decode", 3), ("mixed", 3)]
    for case in cases:
        spent = case["microseconds"]
        assert set(spent) == {"schedule+build", *step.PARTS, "all"}
        assert 0 < spent["schedule"]["p50"] <= spent["all"]["p50"] <= spent["all"]["p99"]


def test_ceilings_are_what_was_copied_and_multiplied_in_the_time_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "best_seconds", lambda work, device, rounds=1: 0.5)
    assert ceilings.measure_ceilings(torch.device("cpu"), torch.float32) == Ceilings(4 * 2**28, 4 * 1024.0**3)
