"""A short stretch of faults on a real server, and whether the harness finds what is amiss with one that is broken."""

from pathlib import Path

import pytest

from tests.chaos.crowd import Outcome
from tests.chaos.play import judged, play, site

QUICK = ("SIGKILL", "SIGSTOP", "slow reader", "client gone", "killed compiler")
TINIER = (
    "random://llama?hidden_size=256&num_hidden_layers=2&vocab_size=300&intermediate_size=128&num_attention_heads=4"
    "&num_key_value_heads=4"
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_whatever_happens_everybody_is_answered_or_told(tmp_path: Path) -> None:
    """The faults that take seconds; `make soak` has all of them, over and over."""
    with site(tmp_path) as one:
        report = play(one, seconds=0, seed=18, faults=QUICK)
    print(report.table())
    assert not report.violations, "\n".join([*report.violations, (tmp_path / "log").read_text()[-5000:]])


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("bug", "told"), [("descriptor", "descriptors instead of"), ("memory", "MiB instead of"), ("lost", "is lost")]
)
def test_a_leak_and_a_lost_answer_are_found(
    tmp_path: Path, bug: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.chaos.play.SETTLE_SECONDS", 3.0)
    with site(tmp_path, program=("tests.chaos.broken_server", bug), larger=TINIER) as one:
        report = play(one, seconds=20, seed=18, faults=("client gone",), patience=30.0)
    assert any(told in violation for violation in report.violations), report.violations


def test_what_is_lost_wrong_or_told_without_reason_is_a_violation() -> None:
    fine = [Outcome("a", "answered"), Outcome("b", "answered")]
    assert not judged(fine, set()) and not judged([*fine, Outcome("b", "told", "engine_died")], {"b"})
    for outcome, hurt in (
        (Outcome("a", "lost", "x"), {"a"}),
        (Outcome("a", "wrong", "x"), {"a"}),
        (Outcome("a", "told", "engine_died"), {"b"}),
    ):
        assert len(judged([*fine, outcome], hurt)) == 1
    assert judged([Outcome("a", "answered"), Outcome("b", "told", "engine_died")], {"b"})
