"""`make test` and `make test-slow` together run every test once."""

from pathlib import Path

import pytest

from scripts.run_tests import BESIDE_EACH_OTHER, SLOW_BESIDE_EACH_OTHER, runs, verdict
from tests.places import ROOT


def files_of(arguments: list[str]) -> set[Path]:
    """The files of tests that a run of pytest looks into."""
    given = [ROOT / argument for argument in arguments if (ROOT / argument).exists()]
    left_out = [ROOT / argument.removeprefix("--ignore=") for argument in arguments if argument.startswith("--ignore=")]
    found = {path for place in given for path in place.rglob("test_*.py")}
    return {path for path in found if not any(path.is_relative_to(place) for place in left_out)}


@pytest.mark.parametrize("slow", [False, True])
def test_every_file_is_in_one_run_and_models_run_alone(slow: bool) -> None:
    first, second = runs(slow=slow, arguments=[])
    assert not files_of(first) & files_of(second)
    assert files_of(first) | files_of(second) == set((ROOT / "tests").rglob("test_*.py"))
    assert "--numprocesses=auto" in first and not any("numprocesses" in argument for argument in second)
    assert all((ROOT / path).is_dir() for path in (*BESIDE_EACH_OTHER, *SLOW_BESIDE_EACH_OTHER))


def test_named_tests_run_in_one_go() -> None:
    assert runs(slow=False, arguments=["./tests/test_docs.py"]) == [["-m", "not slow", "./tests/test_docs.py"]]
    named = ["tests/test_docs.py::test_each_example_is_of_its_language", "-x"]
    assert runs(slow=False, arguments=named) == [["-m", "not slow", *named]]
    assert all(len(runs(slow=slow, arguments=["-k", "docs"])) == 2 for slow in (False, True))


@pytest.mark.parametrize(("codes", "code"), [([0, 0], 0), ([0, 5], 0), ([5, 5], 5), ([0, 1], 1), ([5, 2], 2)])
def test_one_failure_fails_the_whole(codes: list[int], code: int) -> None:
    assert verdict(codes) == code
