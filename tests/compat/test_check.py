"""The comparison that `make compat` ends with can fail, and what is expected is explained."""

import json

from tests.compat.check import EXPECTED, UNEXPLAINED, compare, expectation
from tests.compat.suites import SUITES

OUTCOMES = {"a": None, "b": "status 500", "c": None}
BEFORE = {"passed": ["a", "c"], "failed": {"b": "it asks for the moon"}}


def test_what_behaves_otherwise_is_told() -> None:
    assert compare("s", OUTCOMES, BEFORE) == []
    assert compare("s", OUTCOMES | {"a": "status 400"}, BEFORE) == ["s: a fails: status 400"]
    assert compare("s", OUTCOMES | {"b": None}, BEFORE) == ["s: b passes, though it asks for the moon"]
    assert compare("s", OUTCOMES | {"d": None}, BEFORE) == ["s: d is new, and passes"]
    assert compare("s", {"a": None, "c": None}, BEFORE) == ["s: b is gone"]
    assert compare("s", OUTCOMES, None) == ["s: nothing is expected of it yet"]


def test_what_is_found_can_be_expected_and_keeps_its_reasons() -> None:
    assert expectation(OUTCOMES, BEFORE) == BEFORE
    changed = expectation(OUTCOMES | {"c": "status 404"}, BEFORE)
    assert changed == {"passed": ["a"], "failed": {"b": "it asks for the moon", "c": UNEXPLAINED}}


def test_each_suite_has_expectations_and_each_failure_a_reason() -> None:
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))
    assert expected.keys() == SUITES.keys()
    for suite, content in expected.items():
        assert len(content["passed"]) >= 5, suite
        assert all(reason and reason != UNEXPLAINED for reason in content["failed"].values()), suite
