"""Other people's conformance suites against this server, held to what is expected of each test: `make compat`.

    python -m tests.compat.check [--rewrite]

Starts `headrace serve` with the default model under every name, and runs what `suites` lists. `expected.json` says of
each suite which tests pass, and why the others do not; a test that behaves otherwise, is new, or is gone is a fault.
`--rewrite` writes what was found into that file, where a new reason is left to be filled in.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.compat.suites import SUITES, Missing, Outcomes
from tests.conftest import DEFAULT_MODEL_SOURCE
from tests.serving import running_server, write_models

EXPECTED = Path(__file__).resolve().parent / "expected.json"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
CONTEXT = "256"
"""Short, because some suites ask without a limit, and so small a model does not always end by itself."""
UNEXPLAINED = "why?"
Expected = dict[str, Any]
"""Of one suite: `passed`, a list of tests, and `failed`, a reason by test."""


def main() -> int:
    """Run all suites; the exit code."""
    parser = argparse.ArgumentParser(description="Run other people's conformance suites against this server.")
    parser.add_argument("--rewrite", action="store_true", help="write what was found into expected.json")
    options = parser.parse_args()
    expected: dict[str, Expected] = json.loads(EXPECTED.read_text(encoding="utf-8"))
    found = run_suites()
    if options.rewrite:
        merged = expected | {suite: expectation(outcomes, expected.get(suite)) for suite, outcomes in found.items()}
        EXPECTED.write_text(json.dumps(merged, indent=2) + "\n", encoding="utf-8")
    complaints = [line for suite, outcomes in found.items() for line in compare(suite, outcomes, expected.get(suite))]
    unexplained = [test for suite in expected.values() for test, why in suite["failed"].items() if why == UNEXPLAINED]
    complaints += [f"{test} fails, and nobody has said why" for test in unexplained]
    print("\n".join(complaints) or "every test behaves as expected")
    return 1 if complaints else 0


def run_suites() -> dict[str, Outcomes]:
    """What came of each suite that can run here; says which cannot."""
    found: dict[str, Outcomes] = {}
    with tempfile.TemporaryDirectory() as work:
        entry = {
            "name": MODEL,
            "source": DEFAULT_MODEL_SOURCE,
            "sampling": {"temperature": 0},
            "aliases": ["*"],
        }
        models = write_models(Path(work), entry)
        with running_server("--models", str(models), "--context", CONTEXT) as url:
            for suite, run in SUITES.items():
                try:
                    found[suite] = run(f"{url}/v1", MODEL)
                except Missing as missing:
                    print(f"{suite}: skipped, {missing}")
                    continue
                passed = sum(fault is None for fault in found[suite].values())
                print(f"{suite}: {passed} of {len(found[suite])} passed", flush=True)
    return found


def expectation(outcomes: Outcomes, before: Expected | None) -> Expected:
    """What to expect from now on, with the reasons that were known before."""
    reasons = before["failed"] if before else {}
    return {
        "passed": sorted(test for test, fault in outcomes.items() if fault is None),
        "failed": {
            test: reasons.get(test, UNEXPLAINED) for test, fault in sorted(outcomes.items()) if fault is not None
        },
    }


def compare(suite: str, outcomes: Outcomes, expected: Expected | None) -> list[str]:
    """Where a suite did other than was expected."""
    if expected is None:
        return [f"{suite}: nothing is expected of it yet"]
    known = {*expected["passed"], *expected["failed"]}
    complaints = [f"{suite}: {test} is gone" for test in sorted(known - outcomes.keys())]
    for test, fault in outcomes.items():
        if test not in known:
            complaints.append(f"{suite}: {test} is new, and {'passes' if fault is None else f'fails: {fault}'}")
        elif fault is not None and test in expected["passed"]:
            complaints.append(f"{suite}: {test} fails: {fault}")
        elif fault is None and test in expected["failed"]:
            complaints.append(f"{suite}: {test} passes, though {expected['failed'][test]}")
    return complaints


if __name__ == "__main__":
    sys.exit(main())
