"""The kernels for CUDA without a GPU: right under the interpreter, and built for every architecture without spills."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("triton", reason="needs triton, which comes with torch for CUDA and with make test on Linux")

SHARED_BYTES = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Most shared memory of a block, by compute capability (CUDA C++ Programming Guide, technical specifications)."""
MANY = 30


def lines_of(*command: str) -> list[list[object]]:
    """What a program of this folder prints, half of it run on each of two cores."""

    def half(part: str) -> list[list[object]]:
        done = subprocess.run(
            [sys.executable, "-m", *command, part, "2"], capture_output=True, text=True, timeout=1780, check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]

    with ThreadPoolExecutor() as pool:
        return [line for lines in pool.map(half, ("0", "1")) for line in lines]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kernels_do_what_their_references_do() -> None:
    results = lines_of("tests.engine.kernels.interpreted_kernels")
    assert len(results) > MANY
    assert not [f"{name}: {problem}" for name, problem in results if problem is not None]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_kernels_fit_into_the_processors(capability: int) -> None:
    results = lines_of("tests.engine.kernels.built_kernels", str(capability))
    assert len(results) > MANY
    # Triton turns nothing into e4m3 for an older processor, and the engine refuses FP8 there.
    assert any("FP8" in str(line[0]) for line in results) == (capability >= 89)
    assert not [line for line in results if line[3]], "registers were spilled"
    assert not [line for line in results if int(str(line[1])) > SHARED_BYTES[capability]], "too much shared memory"
