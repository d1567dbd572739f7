"""What `make gpu` checks of models that GPUs share, written for any device, so that it is tried on CPUs.

    python -m tests.gpu.rank_checks DEVICE CHECK DIRECTORY OPTIONS

Each check is a process of its own: ranks that wait for each other, or memory that NCCL keeps, are no other check's
then. OPTIONS is JSON, for the engine. The last line that is printed is `right`, or what went wrong is on stderr.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from engine.build import build_engine
from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import EngineDeadError
from engine.messages import AddRequest
from engine.ranks.leader import LeadingRunner
from engine.ranks.team import Team
from engine.sampling_params import SamplingParams
from tests.engine.test_oracle import generate, make_engine, random_mix, run
from tests.gpu import checks
from tests.places import ROOT

RANKS = 2
SECONDS = 240.0
"""What a check may take: on a GPU it builds kernels."""
LEFT = 17
"""How a process ends whose rank 0 was stuck."""


@contextmanager
def shared(directory: Path, device: str, **options: Any) -> Iterator[tuple[Engine, Any]]:
    """An engine of two ranks, and rank 0's own runner."""
    engine = make_engine(directory, device=device, tensor_parallel=RANKS, **options)
    leader = engine._runner
    assert isinstance(leader, LeadingRunner)
    try:
        yield engine, leader._runner
    finally:
        engine.close()


def tokens(directory: Path, device: str, **options: Any) -> None:
    """Greedy tokens in fp32 equal `generate`'s, of requests that come and go; steps are recorded where they can be."""
    requests, arrivals = random_mix(5, longest=40)
    with shared(directory, device, max_num_seqs=6, **options) as (engine, runner):
        outputs = run(engine, requests, arrivals)
        if device != "cpu" and options.get("attention") == "triton":
            is_recorded = runner.padded is not None and runner.padded.decoding.num_recorded > 0
            assert is_recorded == bool(options.get("graphs", True)), "recorded steps"
    for request_id, request in requests.items():
        wanted = generate(directory, request.prompt_token_ids, request.params.max_tokens)
        assert outputs[request_id] == wanted[: len(outputs[request_id])] and outputs[request_id], request_id


def logits(directory: Path, device: str, **options: Any) -> None:
    """Log-probabilities in 16 bits or FP8 are as near to fp32's as those of one rank may be."""
    is_fp8 = "fp8" in (options.get("quantization"), options.get("kv_dtype"))
    ratio = checks.FP8_ROUNDING_RATIO if is_fp8 else checks.ROUNDING_RATIO
    checks.logits_are_as_good_as_transformers(
        directory, device, torch.bfloat16, ratio=ratio, tensor_parallel=RANKS, **options
    )


def sleeps(directory: Path, device: str, **options: Any) -> None:
    """What was put away on all ranks and brought back says what it said, and is recorded again."""
    requests, arrivals = random_mix(3, longest=30)
    with shared(directory, device, **options) as (engine, runner):
        before = run(engine, requests, arrivals)
        for _ in range(2):
            device_bytes, host_bytes = engine.sleep()
            assert 0 < runner.loaded.weights_bytes * 0.9 <= host_bytes and device_bytes > 0
            engine.wake()
            assert run(engine, requests, arrivals) == before
            if device != "cpu" and runner.padded is not None:
                assert runner.padded.decoding.num_recorded > 0


def dies(directory: Path, device: str, **options: Any) -> None:
    """A rank that is killed in a step is the end of rank 0, which is told or, being stuck, leaves.

    Where it leaves, the process ends with `LEFT` (`outcome`).
    """
    settings = {"dtype": "float32", "max_num_seqs": 4, "memory": "64MiB", **options}
    config = EngineConfig(name="tiny", source=str(directory), device=device, tensor_parallel=RANKS, **settings)
    engine, _ = build_engine(config, lambda *_: None, team=Team.start(config, leave=lambda: os._exit(LEFT)))
    (other,) = [child for child in psutil.Process().children() if "engine.ranks.follower" in child.cmdline()]
    params = SamplingParams(max_tokens=400, temperature=0, ignore_eos=True)
    engine.add(AddRequest(1, [5, 6, 7], params))
    for _ in range(20):
        assert not [output for output in engine.step() if output.error or output.finish_reason]
    killed = threading.Timer(0.05, lambda: os.kill(other.pid, signal.SIGKILL))
    killed.start()
    print("striking", flush=True)
    began = time.monotonic()
    while engine.has_work and engine.failure is None and time.monotonic() - began < 5:
        assert not [output for output in engine.step() if output.error], "it was nobody's request"
    assert engine.failure is not None and time.monotonic() - began < 2, time.monotonic() - began
    failure = engine._runner._team.watch.failure  # type: ignore[attr-defined]
    assert isinstance(failure, EngineDeadError) and "rank 1" in str(failure), failure


CHECKS: dict[str, Callable[..., None]] = {"tokens": tokens, "logits": logits, "sleeps": sleeps, "dies": dies}


def outcome(device: str, check: str, directory: Path, **options: Any) -> str:
    """What a check in a process of its own came to: `right`, or what went wrong. Nothing of it is left afterwards."""
    command = [sys.executable, "-m", "tests.gpu.rank_checks", device, check, str(directory), json.dumps(options)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"not done after {SECONDS:.0f} s"
    finally:
        left = ranks_of(process.pid)
        for rank in (process, *left):
            rank.kill()
        process.wait()
    if left:
        return f"{len(left)} ranks outlived rank 0"
    if process.returncode == LEFT and check == "dies" and "striking" in out and "rank 1" in err:
        return "right"
    return "right" if out.splitlines()[-1:] == ["right"] else err[-3000:]


def ranks_of(session: int) -> list[psutil.Process]:
    """Those of a session that still run."""
    found = []
    for process in psutil.process_iter():
        try:
            is_of_it = os.getsid(process.pid) == session and process.pid != session
            if is_of_it and "engine.ranks.follower" in process.cmdline():
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def main() -> int:
    """See the module's docstring."""
    device, check, directory, options = sys.argv[1:5]
    try:
        CHECKS[check](Path(directory), device, **json.loads(options))
    except BaseException:
        traceback.print_exc()
        return 1
    print("right", flush=True)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # what waits for other ranks in destructors would wait for ever
