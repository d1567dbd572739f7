"""One job of the suite, in a process of its own: `python -m bench.gpu.job JOB RESULTS`.

A process that dies, hangs or loses the device takes no other job with it. JOB is JSON (`Job`); each part that is done
is a line of JSON in the file RESULTS, so that what was measured before the end is kept.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from bench.gpu.limits import LeftOut
from engine.costs import Ceilings
from engine.lifetime import die_with_parent

Emit = Callable[[str, Any], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What all jobs share."""

    device: str = "cuda"
    batches: tuple[int, ...] = (1, 8, 64, 256)
    prompts: tuple[int, ...] = (2048, 16384)
    context: int = 512
    """Tokens of the decoding rows."""
    answer: int = 1024
    """Tokens of prompts and answers of the offline part."""
    offline_seconds: float = 20.0
    """What the offline part of a model takes at most, at the ceiling's rate."""
    burst: tuple[int, int, int] = (128, 512, 256)
    """Requests, prompt and answer of the load that engine and peer share."""
    image_context: int = 8192
    """Of models whose images are measured: for an image of most families, and for streams that outlast ten."""
    server_seconds: float = 90.0


@dataclass(frozen=True, slots=True)
class Job:
    """What one process does."""

    kind: str
    """`device`, `sums`, `ranks`, `engine`, `peer` or `server`."""
    model: str
    parts: tuple[str, ...]
    options: Options
    ceilings: Ceilings | None = None
    ranks: int = 1

    @property
    def name(self) -> str:
        """For the table and the JSON."""
        gpus = f"on {self.ranks} GPU{'s' if self.ranks > 1 else ''}"
        names = {"device": "device", "engine": self.model, "sums": f"sums {gpus}", "ranks": f"{self.model} {gpus}"}
        return names.get(self.kind, f"{self.model} {self.kind}")

    def encode(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def decode(text: str) -> "Job":
        """From JSON."""
        found = json.loads(text)
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in found["options"].items()}
        ceilings = Ceilings(**found["ceilings"]) if found["ceilings"] else None
        parts = tuple(found["parts"])
        return Job(found["kind"], found["model"], parts, Options(**options), ceilings, found["ranks"])


def run_job(job: Job, emit: Emit, leave: Callable[[], None] = lambda: None) -> None:
    """Do all parts of a job; one that fails is emitted as its error.

    `leave` ends this process, which may be stuck, when another rank has ended.
    """
    import torch

    from engine.device.device import select_device

    device = torch.device(job.options.device)
    if job.kind != "server":
        # Also the current device from now on, for kernels that are not given one. Once, and no part of any load.
        device = select_device(job.options.device)
    if job.kind == "ranks":
        run_ranks(job, device, emit, leave)
        return
    kinds = {"device": run_device, "sums": run_sums, "engine": run_engine, "peer": run_peer, "server": run_server}
    kinds[job.kind](job, device, emit)


def attempt(emit: Emit, name: str, work: Callable[[], Any]) -> Any:
    """Emit what some work gives, or its error; None in that case."""
    began = time.perf_counter()
    try:
        found = work()
    except LeftOut as reason:
        emit(name, {"left_out": str(reason)})
        return None
    except Exception as error:  # the other parts still have their turn
        emit(name, {"error": f"{type(error).__name__}: {error}"})
        return None
    emit(name, {**found, "seconds": time.perf_counter() - began})
    return found


def run_device(job: Job, device: Any, emit: Emit) -> None:
    """Ceilings, and alone linears, the attention kernel, and those of experts: what takes least to build first."""
    from engine.measuring.ceilings import measure_ceilings

    ceilings = None
    if "ceilings" in job.parts:
        found = attempt(emit, "ceilings", lambda: asdict(measure_ceilings(device)))
        ceilings = Ceilings(**found) if found else None
    if "linears" in job.parts:
        from bench.gpu.linears import linear_shares

        for name, one in linear_shares(device, ceilings):
            emit(f"linear {name}", one)
    if "attention" in job.parts:
        from bench.gpu.kernels import attention_shares

        for name, one in attention_shares(device, ceilings):
            emit(f"attention {name}", one)
    if "experts" in job.parts:
        from bench.gpu.experts import expert_shares

        for name, one in expert_shares(device, ceilings):
            emit(f"experts {name}", one)


def run_sums(job: Job, device: Any, emit: Emit) -> None:
    """What ranks pay to speak with each other."""
    import torch

    from bench.gpu.rank_costs import link_of
    from bench.gpu.sums import costs_of_speaking, met

    link = link_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    with met(job.ranks, job.options.device) as ranks, torch.inference_mode():
        for name, one in costs_of_speaking(ranks, link):
            emit(name, one)


def run_ranks(job: Job, device: Any, emit: Emit, leave: Callable[[], None]) -> None:
    """One model on so many ranks: decoding, prompts, and what the device does meanwhile."""
    from bench.gpu.ranks import shared_bench

    options = job.options
    longest = max(*options.prompts, options.context) + 1024
    try:
        bench = shared_bench(job.model, job.ranks, device, job.ceilings, context=longest,
                             max_num_seqs=max(options.batches), leave=leave)  # fmt: skip
    except LeftOut as reason:
        emit("load", {"left_out": str(reason)})
        return
    emit("load", describe(bench) | {"launches_per_layer": bench.launches_per_layer, "ranks": job.ranks})
    for batch in options.batches:
        attempt(emit, f"decode {batch}", lambda batch=batch: bench.decode(batch, options.context))
    for length in options.prompts:
        attempt(emit, f"prompt {length}", lambda length=length: bench.prefill(length))
    for batch in options.batches:
        attempt(emit, f"idle {batch}", lambda batch=batch: bench.idle(batch, options.context))
    bench.close()


def describe(bench: Any) -> dict[str, Any]:
    """What was loaded."""
    from engine.kernels.launches import dependence

    info = bench.info
    return {"seconds": bench.load_seconds, "dtype": info.dtype, "attention": info.attention,
            "parameters": info.num_parameters, "step_bytes": bench.costs and bench.costs.step_bytes,
            "kv_tokens": info.kv_tokens, "notes": info.notes,
            "dependent_launches": dependence.on}  # fmt: skip


def run_engine(job: Job, device: Any, emit: Emit) -> None:
    """One model: every chosen part."""
    from bench.gpu.engines import EngineBench
    from engine.errors import ModelLoadError

    options = job.options
    longest = max(*options.prompts, options.context, 2 * options.answer, sum(options.burst[1:])) + 1024
    if "images" in job.parts:
        longest = max(longest, options.image_context)
    try:
        bench = EngineBench(job.model, device, job.ceilings, context=longest, max_num_seqs=max(*options.batches, 1),
                            prefix_cache="images" in job.parts)  # fmt: skip
    except ModelLoadError as error:
        if not error.message.startswith("the weights need"):
            raise
        emit("load", {"left_out": error.message})
        return
    emit("load", describe(bench))
    if "decode" in job.parts:
        for batch in options.batches:
            attempt(emit, f"decode {batch}", lambda batch=batch: bench.decode(batch, options.context))
    if "prefill" in job.parts:
        for length in options.prompts:
            attempt(emit, f"prompt {length}", lambda length=length: bench.prefill(length))
    if "idle" in job.parts:
        for batch in options.batches:
            attempt(emit, f"idle {batch}", lambda batch=batch: bench.idle(batch, options.context))
        attempt(emit, f"idle prompt {options.prompts[0]}", lambda: bench.idle_prompt(options.prompts[0]))
    if "images" in job.parts:
        measure_images(job, bench, device, emit)
    if "burst" in job.parts:
        attempt(emit, "burst", lambda: {"tokens_per_second": bench.burst(*options.burst), "requests": options.burst[0]})
    if "offline" in job.parts:
        attempt(emit, "offline", lambda: bench.offline(options.offline_seconds, options.answer, options.answer))
    if "sleep" in job.parts and device.type == "cuda":  # on a CPU a model is unloaded instead
        attempt(emit, "sleep", lambda: bench.sleep(options.context))
    bench.close()


def measure_images(job: Job, bench: Any, device: Any, emit: Emit) -> None:
    """Of a model that sees."""
    try:
        from bench.gpu.images import SightBench

        sight = SightBench(bench, device, job.ceilings)
    except (LeftOut, ImportError) as reason:
        emit("images", {"left_out": str(reason)})
        return
    except Exception as error:  # transformers raises every kind; the other parts still have their turn
        emit("images", {"error": f"{type(error).__name__}: {error}"})
        return
    for name, work in sight.parts():
        attempt(emit, name, work)


def run_peer(job: Job, device: Any, emit: Emit) -> None:
    """transformers' continuous batching: one request alone, and the burst that the engine has too."""
    from bench.gpu.peer import generated, load, prompt_ids

    requests, prompt, answer = job.options.burst
    began = time.perf_counter()
    loaded = load(job.model, device)
    emit("load", {"seconds": time.perf_counter() - began})
    vocab = int(loaded.config.get_text_config().vocab_size)
    prompts = [prompt_ids(number, prompt, vocab) for number in range(requests)]
    attempt(emit, "decode 1", lambda: generated(loaded, prompts[:1], answer))
    attempt(emit, "burst", lambda: generated(loaded, prompts, answer))


def run_server(job: Job, device: Any, emit: Emit) -> None:
    """A server's start."""
    from bench.gpu.server import measure_start

    attempt(emit, "start", lambda: measure_start(job.model, job.options.device, job.options.server_seconds))


def main() -> int:
    """See the module's docstring."""
    die_with_parent()  # it is in a session of its own, and holds a GPU
    job = Job.decode(sys.argv[1])
    with open(sys.argv[2], "a", encoding="utf-8") as results:

        def emit(name: str, found: Any) -> None:
            results.write(json.dumps([name, found]) + "\n")
            results.flush()

        try:
            run_job(job, emit, lambda: os._exit(1))
        except Exception as error:
            emit("error", {"error": f"{type(error).__name__}: {error}"})
            traceback.print_exc()
            return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what waits for other ranks in destructors would wait for ever
