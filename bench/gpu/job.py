"""One job of the suite, in a process of its own: `python -m bench.gpu.job JOB RESULTS`.

A process that dies, hangs or loses the device takes no other job with it. JOB is JSON (`Job`); each part that is done
is a line of JSON in the file RESULTS, so that what was measured before the end is kept.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from bench.gpu.limits import LeftOut
from engine.costs import Ceilings

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
    server_seconds: float = 90.0


@dataclass(frozen=True, slots=True)
class Job:
    """What one process does."""

    kind: str
    """`device`, `engine`, `peer` or `server`."""
    model: str
    parts: tuple[str, ...]
    options: Options
    ceilings: Ceilings | None = None

    @property
    def name(self) -> str:
        """For the table and the JSON."""
        return {"device": "device", "engine": self.model}.get(self.kind, f"{self.model} {self.kind}")

    def encode(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def decode(text: str) -> "Job":
        """From JSON."""
        found = json.loads(text)
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in found["options"].items()}
        ceilings = Ceilings(**found["ceilings"]) if found["ceilings"] else None
        return Job(found["kind"], found["model"], tuple(found["parts"]), Options(**options), ceilings)


def run_job(job: Job, emit: Emit) -> None:
    """Do all parts of a job; one that fails is emitted as its error."""
    import torch

    device = torch.device(job.options.device)
    if device.type == "cuda" and job.kind != "server":
        torch.cuda.init()  # once for the process, and no part of any load
    {"device": run_device, "engine": run_engine, "peer": run_peer, "server": run_server}[job.kind](job, device, emit)


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
    """Ceilings, and the attention kernel alone."""
    from engine.measuring.ceilings import measure_ceilings

    ceilings = None
    if "ceilings" in job.parts:
        found = attempt(emit, "ceilings", lambda: asdict(measure_ceilings(device)))
        ceilings = Ceilings(**found) if found else None
    if "attention" in job.parts:
        from bench.gpu.kernels import attention_shares

        for name, one in attention_shares(device, ceilings):
            emit(f"attention {name}", one)


def run_engine(job: Job, device: Any, emit: Emit) -> None:
    """One model: every chosen part."""
    from bench.gpu.engines import EngineBench
    from engine.errors import ModelLoadError

    options = job.options
    longest = max(*options.prompts, options.context, 2 * options.answer, sum(options.burst[1:])) + 1024
    try:
        bench = EngineBench(job.model, device, job.ceilings, context=longest, max_num_seqs=max(*options.batches, 1))
    except ModelLoadError as error:
        if not error.message.startswith("the weights need"):
            raise
        emit("load", {"left_out": error.message})
        return
    info = bench.info
    emit("load", {"seconds": bench.load_seconds, "dtype": info.dtype, "attention": info.attention,
                  "parameters": info.num_parameters, "step_bytes": bench.costs.step_bytes,
                  "kv_tokens": info.kv_tokens, "notes": info.notes})  # fmt: skip
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
    if "burst" in job.parts:
        attempt(emit, "burst", lambda: {"tokens_per_second": bench.burst(*options.burst), "requests": options.burst[0]})
    if "offline" in job.parts:
        attempt(emit, "offline", lambda: bench.offline(options.offline_seconds, options.answer, options.answer))
    bench.close()


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
    job = Job.decode(sys.argv[1])
    with open(sys.argv[2], "a", encoding="utf-8") as results:

        def emit(name: str, found: Any) -> None:
            results.write(json.dumps([name, found]) + "\n")
            results.flush()

        try:
            run_job(job, emit)
        except Exception as error:
            emit("error", {"error": f"{type(error).__name__}: {error}"})
            raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
