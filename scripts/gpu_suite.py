"""What `make gpu` and its parts do on a CUDA GPU: `PYTHON -m scripts.gpu_suite PART... [-- ARGUMENT...]`.

Each part is one or several programs, ends within 8 minutes from a cold cache, writes what it has as it goes, and
leaves the others their turn whatever becomes of it. A line for each stands at the end. Arguments are for the part's
program, of several parts the first's.

    bench     ceilings, linears, attention, experts and engines of full size: bench/results/gpu.json
    kernels   each kernel against its reference, and small engines on them against `generate`
    engine    engines: recording, overlap, FP8, ranks, images; then by themselves what needs the memory or the clock
    server    start, TTFT and inter-token latency of 1, 8 and 64 clients, a long prompt beside streams: gpu-server.json;
              the same of clients whose requests have an image: gpu-images.json
    soak      requests that arrive at random for five minutes, and memory and words that stay as they were
"""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

SECONDS, SHARED_SECONDS = 480.0, 1500.0
"""What a part may take, and the benchmark of several GPUs."""
SPARE = 40.0
"""So much sooner the benchmark ends by itself, with its table."""
WORKERS = 8
"""That build kernels beside one another; with more each has too little of the GPU's memory."""
ALONE = ("tests/gpu/test_profile.py", "tests/gpu/test_engine.py::test_the_engine_outlives_a_lack_of_memory")
RESULTS = "bench/results"


def pytest_of(*arguments: str, alone: bool = False) -> list[str]:
    """A run of tests on the GPU, by several workers where there is pytest-xdist."""
    command = ["-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-W", "default", "-q", *arguments]
    if not alone and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(WORKERS, os.cpu_count() or 1))]
    return command


def commands(part: str) -> list[list[str]]:
    """What a part runs, one after another, behind the name of Python."""
    left_out = [option for one in ALONE for option in ("--deselect", one)]
    return {
        "bench": [["-m", "bench.gpu", "--json", f"{RESULTS}/gpu.json"]],  # and what `with_seconds` adds
        "kernels": [pytest_of("tests/gpu/test_kernels.py")],
        "engine": [
            pytest_of(
                "tests/gpu/test_engine.py",
                "tests/gpu/test_fp8.py",
                "tests/gpu/test_ranks.py",
                "tests/gpu/test_sight.py",
                *left_out,
            ),
            pytest_of(*ALONE, alone=True),
        ],
        "server": [
            ["-m", "bench.gpu.traffic", "--json", f"{RESULTS}/gpu-server.json"],
            [
                "-m",
                "bench.gpu.traffic",
                "--model",
                "Qwen2.5-VL-7B",
                "--images",
                "1",
                "--clients",
                "1",
                "8",
                "--max-tokens",
                "64",
                "--json",
                f"{RESULTS}/gpu-images.json",
            ],
        ],
        "soak": [["-m", "bench.gpu.traffic", "--soak", "300", "--json", f"{RESULTS}/gpu-soak.json"]],
    }[part]


PARTS = ("bench", "kernels", "engine", "server", "soak")


def with_seconds(part: str, arguments: Sequence[str]) -> tuple[list[str], float]:
    """A part's arguments and what it may take; the benchmark's are to end it before."""
    if part != "bench":
        return list(arguments), SECONDS
    if "--seconds" in arguments:
        return list(arguments), float(arguments[list(arguments).index("--seconds") + 1]) + SPARE
    seconds = SHARED_SECONDS if "--gpus" in arguments else SECONDS
    return [*arguments, "--seconds", f"{seconds - SPARE:.0f}"], seconds


def play(part: str, arguments: Sequence[str]) -> str:
    """Run a part's programs, one that fails before the others; what became of it."""
    began, failures = time.monotonic(), []
    arguments, seconds = with_seconds(part, arguments)
    for number, command in enumerate(commands(part)):
        left = max(seconds - (time.monotonic() - began), 1.0)
        code = run([sys.executable, *command, *(arguments if number == 0 else [])], left)
        if code is None:
            return f"ended after {seconds:.0f} s"
        if code:
            failures.append(str(code))
    took = f"{time.monotonic() - began:.0f} s"
    return f"failed ({', '.join(failures)}) after {took}" if failures else f"well, {took}"


def run(command: Sequence[str], seconds: float) -> int | None:
    """A program's exit code; None if it took longer, and then it is ended with all that it started."""
    program = subprocess.Popen(command, start_new_session=True)
    try:
        return program.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
            program.wait()


def main(arguments: list[str] | None = None) -> int:
    """0 if all parts went well."""
    given = sys.argv[1:] if arguments is None else arguments
    parts, rest = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        print(f"part: {' '.join(unknown) or 'none'} is none of {', '.join(PARTS)}", file=sys.stderr)
        return 2
    if subprocess.run([sys.executable, "-m", "scripts.gpu_python", "--check"], check=False).returncode:
        return 1
    outcomes = {part: play(part, rest if number == 0 else []) for number, part in enumerate(parts)}
    print("\n" + "\n".join(f"{part:<8} {outcome}" for part, outcome in outcomes.items()))
    return 0 if all(outcome.startswith("well") for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
