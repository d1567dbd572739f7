"""What one step costs beside the model: scheduling, packing inputs, sampling's host work, committing, telling.

    python -m engine.measuring.step --running 1 64 256 --steps 300

The real engine, scheduler, block manager, batch builder, sampler and messages, with a model that computes nothing and a
vocabulary of 32, so that the sampler's tensor work vanishes. `decode` has every sequence add one token a step; `mixed`
has one slot that always computes a prompt in chunks beside the others' decode, prefix hashing included. Times are CPU
microseconds of the thread (other load on the machine does not count), medians and 99th percentiles over the steps.
Prints a JSON list of cases.
"""

import argparse
import gc
import json
import math
import random
import time
from collections import defaultdict
from typing import Any

import torch

from engine.device.forward_batch import BatchBuilder
from engine.engine import Engine
from engine.messages import AddRequest, StepOutputs, encode
from engine.sampling.sampler import PendingSample, Sampled, Sampler
from engine.sampling_params import SamplingParams
from engine.scheduling.block_manager import BlockManager
from engine.scheduling.scheduled import Scheduled
from engine.scheduling.scheduler import Scheduler

VOCAB = 32
BLOCK_SIZE = 16
CONTEXT = 8192
CHUNK = 512
"""Prompt tokens a mixed step computes."""
PARTS = ("schedule", "build", "sample", "commit", "stats", "encode")
TARGETED = ("schedule", "build")
"""Parts whose sum is held to a millisecond with 256 running sequences; allocating blocks is in `schedule`."""


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--running", type=int, nargs="+", default=[1, 64, 256], metavar="N")
    parser.add_argument("--context", type=int, default=1000, help="tokens of each sequence at the start")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cases = []
    for running in options.running:
        for kind in ("decode", "mixed") if running > 1 else ("decode",):
            times = Bench(running, options.context, mixed=kind == "mixed").run(options.steps)
            cases.append({"case": kind, "running": running, "microseconds": _summary(times)})
    print(json.dumps(cases))
    return 0


class Timer:
    """Adds up the CPU time of named parts of a step."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = defaultdict(float)

    def call(self, part: str, function: Any, *arguments: Any) -> Any:
        """Call and time a function."""
        began = time.thread_time_ns()
        result = function(*arguments)
        self.parts[part] += (time.thread_time_ns() - began) / 1000
        return result


class TimedScheduler(Scheduler):
    """The scheduler, timed."""

    timer: Timer

    def schedule(self) -> list[Scheduled]:
        """Time it."""
        rows: list[Scheduled] = self.timer.call("schedule", super().schedule)
        return rows


class EmptyModel:
    """A runner that packs and samples as the real one does, and computes nothing between the two."""

    def __init__(self, builder: BatchBuilder, sampler: Sampler, timer: Timer) -> None:
        self._builder, self._sampler, self._timer = builder, sampler, timer

    def forward(self, rows: list[Scheduled]) -> "EmptyFlight":
        """Pack the rows."""
        self._timer.call("build", self._builder.build, rows)
        return EmptyFlight(self._sampler, self._timer)

    def encode_images(self, row: Scheduled, seconds: float | None) -> bool:
        """There are none."""
        return True

    def rest(self) -> None:
        """Nothing was begun."""

    def sleep(self) -> tuple[int, int]:
        """There is nothing to put away."""
        return 0, 0

    def wake(self) -> None:
        """Nor to bring back."""

    def close(self) -> None:
        """Nothing runs beside it."""

    def wipe_blocks(self, blocks: list[int], block_size: int) -> None:
        """Nothing holds anything."""


class EmptyFlight:
    """A step of an empty model, whose logits are all zero."""

    def __init__(self, sampler: Sampler, timer: Timer) -> None:
        self._sampler, self._timer = sampler, timer
        self._pending: PendingSample | None = None

    @torch.inference_mode()
    def sample(self, sampling: list[Scheduled], scoring: list[Scheduled]) -> None:
        """Sample the rows; none is scored here."""
        assert not scoring
        logits = torch.zeros(len(sampling), VOCAB)
        self._pending = self._timer.call("sample", self._sampler.sample, logits, [row.sequence for row in sampling])

    def result(self) -> Sampled:
        """The tokens."""
        assert self._pending is not None
        return self._pending.result()


class Bench:
    """An engine with `running` sequences under way."""

    def __init__(self, running: int, context: int, *, mixed: bool) -> None:
        self._running, self._context, self._mixed = running, context, mixed
        self._random = random.Random(0)
        self._timer = Timer()
        blocks = BlockManager(running * CONTEXT // BLOCK_SIZE // 4 + 1024, BLOCK_SIZE)
        self._scheduler = TimedScheduler(
            blocks, max_num_seqs=running, max_batched_tokens=8192, max_prefill_tokens=CHUNK
        )
        self._scheduler.timer = self._timer
        device = torch.device("cpu")
        builder = BatchBuilder(
            max_num_seqs=running, max_blocks=CONTEXT // BLOCK_SIZE, block_size=BLOCK_SIZE, device=device
        )
        model = EmptyModel(builder, Sampler(max_num_seqs=running, vocab_size=VOCAB, device=device), self._timer)
        self._engine = Engine(
            model, self._scheduler, context=CONTEXT, vocab_size=VOCAB, eos_token_ids=frozenset({VOCAB - 1}),
            max_queued=running,
        )  # fmt: skip
        self._requests = 0
        for _ in range(running - mixed):
            self._add(max_tokens=CONTEXT)

    def run(self, steps: int) -> list[dict[str, float]]:
        """Microseconds of each part of each step, once all sequences decode."""
        while self._scheduler.waiting or any(s.num_generated == 0 for s in self._scheduler.running):
            self._engine.step()
        gc.collect()
        gc.freeze()  # as the engine process does
        results = [self._step() for _ in range(steps + 20)][20:]
        gc.unfreeze()
        return results

    def _step(self) -> dict[str, float]:
        if self._mixed and not self._scheduler.waiting:
            self._add(max_tokens=1)
        timer = self._timer
        timer.parts.clear()
        outputs = timer.call("all", self._engine.step)
        stats = timer.call("stats", self._engine.stats)
        timer.call("encode", lambda: encode(StepOutputs(outputs, stats)))
        parts = dict(timer.parts)
        parts["commit"] = parts["all"] - sum(parts[name] for name in ("schedule", "build", "sample"))
        parts["all"] += parts["stats"] + parts["encode"]
        parts["schedule+build"] = sum(parts[name] for name in TARGETED)
        return parts

    def _add(self, *, max_tokens: int) -> None:
        self._requests += 1
        prompt = [self._random.randrange(VOCAB - 1) for _ in range(self._context)]
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        self._engine.add(AddRequest(self._requests, prompt, params))


def _summary(times: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        name: {f"p{percent}": _percentile([step[name] for step in times], percent) for percent in (50, 99)}
        for name in ("schedule+build", *PARTS, "all")
    }


def _percentile(values: list[float], percent: int) -> float:
    """Nearest rank."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


if __name__ == "__main__":
    raise SystemExit(main())
