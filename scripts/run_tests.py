"""Run the tests, as `make test` and `make test-slow` do.

    python -m scripts.run_tests [--slow] [pytest's own arguments]

What runs no model runs beside each other, a file at a time on each core. Models come after it and alone, since the
threads of two of them would fight for the cores. Without --slow what needs minutes is left out, with it all else is,
and pages in a browser are alone too, since they are asked what they do in time.
Where the arguments name files or folders of tests, just those run, in one go.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BESIDE_EACH_OTHER = (
    "tests/server",
    "tests/engine/grammar",
    "tests/engine/sampling",
    "tests/engine/scheduling",
    "tests/engine/weights",
)
SLOW_BESIDE_EACH_OTHER = ("tests/engine/grammar", "tests/engine/kernels", "tests/server/openapi")
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
        codes.append(subprocess.run([sys.executable, "-m", "pytest", *chosen], cwd=ROOT, check=False).returncode)
    return verdict(codes)


if __name__ == "__main__":
    sys.exit(main())
