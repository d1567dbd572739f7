"""Run the tests, as `make test` and `make test-slow` do.

    python -m scripts.run_tests [--slow] [pytest's own arguments]

Most tests run beside each other, a file at a time on each core, and with one thread of torch's each, since the threads
of two models would fight for the cores. What comes after them runs alone: whole servers with real models, and in the
slow run pages in a browser too, since they are asked what they do in time. Without --slow what needs minutes is left
out, with it all else is.
Where the arguments name files or folders of tests, just those run, in one go.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BESIDE_EACH_OTHER = ("tests/server", "tests/engine")
SLOW_BESIDE_EACH_OTHER = ("tests/engine", "tests/server/openapi")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
PASSED, NOTHING_CHOSEN = 0, 5
"""Exit codes of pytest."""


def runs(slow: bool, arguments: Sequence[str]) -> list[list[str]]:
    """The arguments of each run of pytest."""
    marked = ["-m", "slow" if slow else "not slow"]
    if any(map(_names_tests, arguments)):
        return [[*marked, *arguments]]
    beside = SLOW_BESIDE_EACH_OTHER if slow else BESIDE_EACH_OTHER
    ignored = [f"--ignore={path}" for path in beside]
    return [
        [*marked, "--numprocesses=auto", "--dist=loadfile", *beside, *arguments],
        [*marked, "tests", *ignored, *arguments],
    ]


def _names_tests(argument: str) -> bool:
    path = Path(argument.partition("::")[0])
    return "/" in argument and path.exists() and path.resolve().is_relative_to(ROOT / "tests")


def verdict(codes: Sequence[int]) -> int:
    """One exit code of several: a failure is one; to have chosen nothing anywhere is one too."""
    failures = [code for code in codes if code not in (PASSED, NOTHING_CHOSEN)]
    return failures[0] if failures else min(codes)


def main() -> int:
    """Run them all, whatever fails; the exit code."""
    arguments = sys.argv[1:]
    slow = "--slow" in arguments
    arguments = [argument for argument in arguments if argument != "--slow"]
    codes = []
    for chosen in runs(slow, arguments):
        environment = os.environ | (ONE_THREAD if "--numprocesses=auto" in chosen else {})
        command = [sys.executable, "-m", "pytest", *chosen]
        codes.append(subprocess.run(command, cwd=ROOT, check=False, env=environment).returncode)
    return verdict(codes)


if __name__ == "__main__":
    sys.exit(main())
