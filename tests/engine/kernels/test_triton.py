"""The kernels for CUDA without a GPU: right under the interpreter, and built for every architecture without spills."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="needs triton, which comes with torch for CUDA and with make test on Linux")

from tests.engine.kernels.built_kernels import Line
from tests.soaking import marked_for_soak

SHARED_BYTES = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
"""Most shared memory of a block, by compute capability (CUDA C++ Programming Guide, technical specifications)."""
IN_SHORT = 90
"""Built with each change; the others by `make soak` alone, since no kernel is another there."""
MANY = 30
PUT_AWAY = 32
"""Bytes of a thread that the assembler may put away so that 128 registers suffice, and a program more finds room.

On 12.0 one kernel needs 16 beyond 255 registers: that of experts in FP8 in the largest prompts.
"""
HOPPER = {
    "attention, 64, group of 4": (8, 1350),
    "attention, 128, group of 4": (5, 2000),
    "attention, 128, group of 4, five stages": (3, 2100),
    "attention, FP8 cache, 128, group of 4": (3, 2850),
    "attention of prompts, 64, group of 4": (2, 330),
    "attention of prompts, 128, group of 4": (1, 610),
    "attention of prompts, 128, group of 4, 128x64/8/3": (1, 425),
    "attention of prompts, FP8 cache, 128, group of 4": (1, 550),
    "attention on latents, group of 16, prompts False": (2, 7700),
    "attention on latents, group of 128, prompts False": (1, 5200),
}
"""Programs that share a processor of 9.0, and instructions of a warp for 1,000 scores where all are seen: as they were
when bench/LOG.md was written (2026-11-28), and 2 to 5 % more."""
TILE_BYTES = 64 * 128 * 2
DEPENDENT = {
    "attend_kernel", "cut_kernel", "join_kernel", "add_rms_norm_kernel", "activate_mul_kernel", "rotate_write_kernel",
    "one_row_kernel", "few_rows_kernel", "quantize_rows_kernel", "add_rms_norm_rounded_kernel",
    "activate_mul_rounded_kernel",
}  # fmt: skip
"""Kernels whose launches may be dependent from 9.0 on: those of a decoding step."""
FP8_KERNELS = {"quantize_rows_kernel", "add_rms_norm_rounded_kernel", "activate_mul_rounded_kernel"}
"""Of these, those that give e4m3."""


def lines_of(*command: str) -> list[list[Any]]:
    """What a program of this folder prints, half of it run on each of two cores."""

    program, *arguments = command

    def half(part: str) -> list[list[Any]]:
        done = subprocess.run(
            [sys.executable, "-m", program, part, "2", *arguments], capture_output=True, text=True,
            timeout=3380, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]

    with ThreadPoolExecutor() as pool:
        return [line for lines in pool.map(half, ("0", "1")) for line in lines]


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(3400)
def test_kernels_do_what_their_references_do() -> None:
    results = lines_of("tests.engine.kernels.interpreted_kernels")
    assert len(results) > MANY
    assert not [f"{name}: {problem}" for name, problem in results if problem is not None]


@pytest.fixture(scope="session")
def launches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the recommended models launch, written by `real_launches`."""
    file = tmp_path_factory.mktemp("launches") / "launches.pickle"
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.kernels.real_launches", str(file)], capture_output=True, text=True,
        timeout=1500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return file


@pytest.mark.timeout(3400)
@pytest.mark.parametrize(
    "capability",
    [
        pytest.param(one, marks=[pytest.mark.slow, pytest.mark.soak]) if one == IN_SHORT else marked_for_soak(one)
        for one in SHARED_BYTES
    ],
)
def test_kernels_fit_into_the_processors(capability: int, launches: Path) -> None:
    command = ("tests.engine.kernels.built_kernels", str(capability), str(launches))
    results = [Line(*line) for line in lines_of(*command)]
    assert len(results) > MANY
    # Triton turns nothing into e4m3 for an older processor, and the engine refuses FP8 there.
    assert any("fp8e4nv" in line.name for line in results) == (capability >= 89)
    wanted = DEPENDENT - (FP8_KERNELS if capability < 89 else set())
    assert {line.kernel for line in results} >= wanted
    may_spill = [line for line in results if line.registers <= 128 or capability == 120]
    assert not [line for line in results if line.stack > (PUT_AWAY if line in may_spill else 0)], "spilled"
    assert not [line for line in results if line.spills], "spilled in a loop"
    assert not [line for line in results if line.shared > SHARED_BYTES[capability]], "too much shared memory"
    waiting = {line.kernel for line in results if line.waits}
    assert waiting == (DEPENDENT if capability >= 90 else set())
    assert not [line for line in results if line.kernel in waiting and not line.waits], "one form of it does not wait"
    assert not [line for line in results if line.waits > 1 or line.early], "something is done before the wait"
    if capability == 90:
        built = {line.name: line for line in results}
        for name, (programs, instructions) in HOPPER.items():
            assert built[name].programs >= programs and min(built[name].loops) <= instructions, built[name]
        assert built["attention, 128, group of 4"].shared >= 2 * TILE_BYTES, "a tile of keys and one of values"
        assert built["attention, 128, group of 4, five stages"].shared >= 4 * TILE_BYTES, "two of each"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "family",
    [pytest.param("deepseek_v2@fp8+kv8", marks=[pytest.mark.slow, pytest.mark.soak]), marked_for_soak("qwen2_5_vl")],
)
def test_nothing_is_built_while_an_engine_serves(family: str) -> None:
    """Of requests; of steps it is in `test_forms`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.kernels.steady", family], capture_output=True, text=True, timeout=580,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    built, later = json.loads(done.stdout.splitlines()[-1])
    assert {"cut_kernel", "attend_kernel", "join_kernel", "race_kernel", "thresholds_kernel"} <= built.keys()
    assert not later, "kernels are built while requests wait"
