"""How close the engine comes to what a GPU can do: `python -m bench.gpu`, or `make gpu` with the tests before it.

Full-size models with random weights, made on the device; no network. Each rate is shown as a share of its ceiling,
which `engine.costs` computes from a copy and a large product, both measured first. `--parts` picks parts,
`--models` models (`NAME@fp8`: weights in FP8, `NAME@fp8+kv8`: the KV cache too, `NAME@fp8files`: drawn in FP8, as a
checkpoint has it), `--seconds` bounds the whole. With `--gpus N` models are shared among N GPUs instead.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.gpu.job import Job, Options
from bench.gpu.report import rows_of
from engine.costs import Ceilings
from engine.errors import ModelLoadError
from engine.weights.random_model import told_fields
from engine.weights.seeing import is_of_images
from server.benchmarks.record import circumstances, table, write_json

MODELS = ("Llama-3.1-8B", "Llama-3.1-8B@fp8", "Llama-3.1-8B@fp8+kv8", "Qwen2.5-1.5B", "Qwen2.5-VL-7B",
          "Llama-3.2-11B-Vision", "gemma-2-2b", "phi-4", "Qwen2.5-32B")  # fmt: skip
PEERS = ("Llama-3.1-8B",)
ENGINE_PARTS = ("decode", "prefill", "idle", "images", "burst", "offline", "sleep")
PARTS = ("ceilings", "attention", "experts", "linears", *ENGINE_PARTS, "peer", "server")
SHARED_MODELS = ("Llama-3.3-70B", "Llama-3.3-70B@fp8files", "DeepSeek-R1@fp8files",
                 "DeepSeek-R1?num_hidden_layers=9@fp8files")  # fmt: skip
"""Of the part `ranks`; the last one for GPUs that do not hold the whole, with six layers of experts."""
SHARED_PARTS = ("ceilings", "ranks")
SHARED_BATCHES = (1, 8, 64)
SHORT = {"Llama-3.1-8B@fp8+kv8": ("offline", "sleep"), "Qwen2.5-VL-7B": ("decode", "images"),
         "Llama-3.2-11B-Vision": ("decode", "images")}  # fmt: skip
"""Models of which by default only some parts are measured, for time."""
JOB_SECONDS = {"device": 300.0, "sums": 120.0, "ranks": 300.0, "engine": 240.0, "peer": 75.0, "server": 120.0}
"""What a job may take before it is ended."""
SECONDS, SHARED_SECONDS = 480.0, 1500.0
LOOK_SECONDS = 2.0
"""Between two looks at what a job has found so far, which is written then."""
LEAST_SECONDS = 15.0
"""A job is not begun with less time left."""
NO_PATH = str.maketrans("/@?&= ", "______")
LONGEST_NAME = 200
Found = dict[str, dict[str, Any]]


def plan(options: argparse.Namespace, shared: Options) -> list[Job]:
    """The jobs in their order, the most telling first."""
    jobs = []
    if {"ceilings", "attention", "experts", "linears"} & set(options.parts):
        jobs.append(Job("device", "", tuple(options.parts), shared))
    if "ranks" in options.parts:
        jobs.append(Job("sums", "", ("ranks",), shared, ranks=options.gpus))
        for model in options.models:
            jobs += [Job("ranks", model, ("ranks",), shared, ranks=ranks) for ranks in (options.gpus, 1)]
    for model in options.models:
        wanted = SHORT.get(model, ENGINE_PARTS) if tuple(options.models) == MODELS else ENGINE_PARTS
        parts = tuple(part for part in wanted if part in options.parts and has_part(model, part, options.peers))
        if parts:
            jobs.append(Job("engine", model, parts, shared))
        if model in options.peers:
            jobs += [Job(kind, model, (kind,), shared) for kind in ("server", "peer") if kind in options.parts]
    return jobs


def has_part(model: str, part: str, peers: Sequence[str]) -> bool:
    """Whether there is such a part of a model."""
    if part == "images":
        with contextlib.suppress(ModelLoadError):
            return is_of_images(told_fields(model.partition("@")[0]))
        return False
    return part != "burst" or model in peers


def run(job: Job, seconds: float, logs: Path | None = None, seen: Callable[[Found], None] = lambda _: None) -> Found:
    """What a job measured in a process of its own, in at most `seconds`; what went wrong stands under `error`.

    What the process said is kept in the folder `logs`, if there is one. `seen` is told what there is as it comes.
    """
    with tempfile.TemporaryDirectory() as work:
        results, log = Path(work) / "results", Path(work) / "log"
        command = [sys.executable, "-m", "bench.gpu.job", job.encode(), str(results)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        with log.open("wb") as said:
            process = subprocess.Popen(command, stdout=said, stderr=said, env=environment, start_new_session=True)
            try:
                code = watched(process, seconds, lambda: seen(read(results)))
            finally:
                end(process)
        if logs is not None:
            logs.mkdir(parents=True, exist_ok=True)
            shutil.copy(log, logs / f"{job.name.translate(NO_PATH)[-LONGEST_NAME:]}.log")
        found = read(results)
        if code is None:
            found["error"] = {"error": f"not done after {seconds:.0f} s"}
        elif code and "error" not in found:
            tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            found["error"] = {"error": f"ended with {code}: {' '.join(tail)}"}
        return found


def watched(process: "subprocess.Popen[bytes]", seconds: float, look: Callable[[], None]) -> int | None:
    """Wait for a process, and look after it now and then; its exit code, None if it takes longer than `seconds`."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(min(left, LOOK_SECONDS))
        look()
    return None


def read(results: Path) -> Found:
    """What a job has written, but for a line that is not whole."""
    lines = results.read_text(encoding="utf-8").split("\n")[:-1] if results.exists() else []
    return dict(json.loads(line) for line in lines)


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a job's process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def measure(
    jobs: list[Job], seconds: float, logs: Path | None = None, keep: Callable[[dict[str, Found]], None] = lambda _: None
) -> dict[str, Found]:
    """All jobs one after another, while time is left; `keep` is told what was found, by each as it goes."""
    deadline = time.monotonic() + seconds
    found: dict[str, Found] = {}
    ceilings: Ceilings | None = None
    for job in jobs:
        left = deadline - time.monotonic()
        if left < LEAST_SECONDS:
            found[job.name] = {"error": {"error": f"left out: the {seconds:.0f} s of the suite are over"}}
            continue
        began = time.monotonic()
        job = replace(job, ceilings=ceilings)

        def seen(so_far: Found, name: str = job.name) -> None:
            keep(found | {name: so_far})

        found[job.name] = run(job, min(left, JOB_SECONDS[job.kind]), logs, seen)
        keep(found)
        print(f"{job.name}: {time.monotonic() - began:.0f} s", flush=True)
        measured = found[job.name].get("ceilings", {})
        if "bytes_per_second" in measured:
            ceilings = Ceilings(**{name: measured[name] for name in Ceilings.__dataclass_fields__})
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, default = parser.add_argument, Options()
    add("--gpus", type=int, default=1, metavar="N", help="that share models, in the part ranks")
    add("--models", nargs="+", help="shipped architectures, or what may stand behind random://")
    add("--parts", nargs="+", choices=(*PARTS, "ranks"))
    add("--peers", nargs="*", default=PEERS, help="models of the parts peer and server")
    add("--batches", nargs="+", type=int)
    add("--prompts", nargs="+", type=int, default=default.prompts)
    add("--context", type=int, default=default.context, help="of the decoding rows")
    add("--answer", type=int, default=default.answer, help="tokens of prompts and answers of the offline part")
    add("--offline-seconds", type=float, default=default.offline_seconds, help="bounds that part's requests")
    add("--burst", nargs=3, type=int, default=default.burst, metavar=("REQUESTS", "PROMPT", "ANSWER"))
    add("--seconds", type=float, help="of the whole; what does not fit is left out")
    add("--device", default="cuda")
    add("--json", metavar="FILE", help="rewritten as figures come, so that a run that is cut leaves them")
    add("--logs", metavar="FOLDER", type=Path, help="keep what each job's process said")
    options = parser.parse_args(arguments)
    if options.gpus < 1 or (options.gpus == 1 and "ranks" in (options.parts or ())):
        parser.error("the part ranks needs --gpus 2 or more")
    of_one = {"models": MODELS, "parts": PARTS, "batches": default.batches, "seconds": SECONDS}
    of_several = {"models": SHARED_MODELS, "parts": SHARED_PARTS, "batches": SHARED_BATCHES, "seconds": SHARED_SECONDS}
    for name, value in (of_one if options.gpus == 1 else of_several).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure, write JSON, print a table last; 1 if something failed, 2 without a GPU."""
    import torch

    from bench.gpu.ranks import circumstances_of

    options = parse(arguments)
    device = torch.device(options.device)
    is_cuda = device.type == "cuda"
    if is_cuda and not torch.cuda.is_available():
        print("bench.gpu needs a CUDA GPU, and torch sees none")
        return 2
    if is_cuda and (device.index or 0) + options.gpus > torch.cuda.device_count():
        print(f"--gpus {options.gpus} from {device} on were asked for, and torch sees {torch.cuda.device_count()} GPUs")
        return 2
    shared = Options(
        device=options.device, batches=tuple(options.batches), prompts=tuple(options.prompts), context=options.context,
        answer=options.answer, offline_seconds=options.offline_seconds, burst=tuple(options.burst),
    )  # fmt: skip
    if not (jobs := plan(options, shared)):
        print(f"none of these models has a part of {', '.join(options.parts)}")
        return 2
    began = time.monotonic()
    head = {**circumstances(), "device": torch.cuda.get_device_name(device) if is_cuda else "cpu"}
    if options.gpus > 1:
        head["ranks"] = circumstances_of(options.gpus, options.device)

    def keep(found: dict[str, Found]) -> None:
        if options.json:
            write_json(options.json, {**head, "seconds": time.monotonic() - began, "found": found})

    found = measure(jobs, options.seconds, options.logs, keep)
    keep(found)
    print(table(["model", "part", "measured", "of ceiling"], rows_of(found)))
    return 1 if any("error" in one for parts in found.values() for one in parts.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
