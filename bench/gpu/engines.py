"""One model in one engine: decoding, prompts, many requests at once, and what the device does meanwhile."""

import dataclasses
import gc
import time
from collections.abc import Callable

import torch

from bench.gpu.forms import config_of
from bench.gpu.idle import profiled
from bench.gpu.limits import LeftOut, loaded_costs
from engine.build import build_engine
from engine.costs import ANSWER, PROMPT, Ceilings, Costs
from engine.device.timing import synchronize
from engine.engine import Engine
from engine.execution.model_runner import ModelRunner
from engine.messages import AddRequest, EngineInfo
from engine.ranks.leader import LeadingRunner
from engine.ranks.team import Team
from engine.sampling_params import SamplingParams
from server.benchmarks.record import percentile

WARMUP_STEPS = 12
"""More than a decoding step is run before it is recorded."""
DECODE_STEPS = 48
PROFILED_STEPS = 24
ROOM = 64
"""Tokens for each row that are left free when its measurement ends."""


class EngineBench:
    """Loads a model (`bench.gpu.forms`) and measures it. Raises what the engine raises."""

    def __init__(
        self, spec: str, device: torch.device, ceilings: Ceilings | None, *, context: int, max_num_seqs: int,
        ranks: int = 1, costs: Costs | None = None, leave: Callable[[], None] = lambda: None,
        prefix_cache: bool = False,
    ) -> None:  # fmt: skip
        """`costs` are read off the model if they are not given; for `ranks` and `leave` see `Team.start`."""
        began = time.perf_counter()
        config = config_of(spec, device, context=context, max_num_seqs=max_num_seqs, ranks=ranks,
                           prefix_cache=prefix_cache)  # fmt: skip
        self.engine: Engine
        self.info: EngineInfo
        team = Team.start(config, leave=leave) if ranks > 1 else None
        self.engine, self.info = build_engine(config, lambda *_: None, team=team)
        gc.collect()
        gc.freeze()  # as the engine's process does
        synchronize(device)
        self.load_seconds = time.perf_counter() - began
        runner = self.engine._runner
        if isinstance(runner, LeadingRunner):
            runner = runner._runner
        assert isinstance(runner, ModelRunner)
        self.runner = runner
        self._smallest_chunk = runner.limits.min_prefill_tokens
        self.launches_per_layer = runner.launches_per_layer
        if costs is None and ranks == 1:
            costs = loaded_costs(runner.model, runner.loaded.text_config, self.info, is_fp8="@fp8" in spec)
        self.costs: Costs | None = costs
        """None where nobody knows."""
        self._device, self._ceilings = device, ceilings
        self._num_requests = 0

    def add(self, prompt_tokens: int, max_tokens: int) -> int:
        """One request that never ends early; its id."""
        self._num_requests += 1
        ids = [(7919 * self._num_requests + 31 * at) % (self.info.vocab_size - 1) for at in range(prompt_tokens)]
        params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
        self.engine.add(AddRequest(self._num_requests, ids, params))
        return self._num_requests

    def finish(self) -> int:
        """Run until nothing is left; the tokens that came. Raises RuntimeError where a request failed."""
        tokens = 0
        while self.engine.has_work:
            tokens += sum(self._step().values())
        synchronize(self._device)
        return tokens

    def decode(self, batch: int, context: int) -> dict[str, float]:
        """The rate of a full batch of decoding rows, the prompts aside."""
        running = self._start(batch, context)
        times = []
        synchronize(self._device)
        for _ in range(DECODE_STEPS):
            began = time.perf_counter()
            self.engine.step()
            times.append(time.perf_counter() - began)
        # The first have come further than the last when all decode.
        middle = self._mean_context() - DECODE_STEPS / 2
        self._end(running)
        seconds = sum(times) / len(times)
        found = {"tokens_per_second": batch / seconds, "step_ms": seconds * 1e3}
        found["step_ms_p99"] = percentile(times, 99) * 1e3
        found["context"] = middle
        if self._ceilings is not None and self.costs is not None:
            found["share_of_ceiling"] = self.costs.decode_seconds(self._ceilings, batch, middle) / seconds
        return found

    def idle(self, batch: int, context: int) -> dict[str, float]:
        """What share of a steady decode the device stands idle, and waits for the host."""
        running = self._start(batch, context)
        found = profiled(self.engine.step, PROFILED_STEPS, self._device)
        self._end(running)
        return dataclasses.asdict(found)

    def idle_prompt(self, prompt_tokens: int) -> dict[str, float]:
        """The same of one prompt."""

        def compute() -> None:
            self.add(prompt_tokens, 1)
            self.finish()

        compute()
        return dataclasses.asdict(profiled(compute, 1, self._device))

    def prefill(self, prompt_tokens: int) -> dict[str, float]:
        """The rate of one prompt with nothing beside it; the second of two, so that everything is built."""
        if prompt_tokens >= self.info.context:
            raise LeftOut(f"the KV cache of {self.info.kv_tokens} tokens is too small")
        seconds = 0.0
        for _ in range(2):
            began = time.perf_counter()
            self.add(prompt_tokens, 1)
            self.finish()
            seconds = time.perf_counter() - began
        found = {"tokens_per_second": prompt_tokens / seconds}
        if self._ceilings is not None and self.costs is not None:
            found["share_of_ceiling"] = self.costs.prompt_seconds(self._ceilings, prompt_tokens) / seconds
        return found

    def offline(self, seconds: float, prompt: int = PROMPT, answer: int = ANSWER) -> dict[str, float]:
        """Requests that all come at once, to the end: as many as fit, at most what the ceiling does in `seconds`."""
        fitting = min(self.info.max_num_seqs, self.info.kv_tokens // (prompt + answer + self.info.block_size))
        count = fitting
        found: dict[str, float] = {}
        if self._ceilings is not None and self.costs is not None:
            ideal = self.costs.best_offline_rate(self._ceilings, self.info.kv_tokens)
            count = max(1, min(count, int(seconds * ideal / answer)))
            found["ideal_tokens_per_second"] = ideal
            found["ideal_of_requests"] = self.costs.offline_rate(self._ceilings, count)
        rate = self.burst(count, prompt, answer)
        found |= {"tokens_per_second": rate, "requests": count, "fitting": fitting}
        if self._ceilings is not None and self.costs is not None:
            found["share_of_ceiling"] = rate / found["ideal_tokens_per_second"]
        return found

    def burst(self, count: int, prompt: int, answer: int) -> float:
        """Answered tokens a second of so many requests that all come at once."""
        began = time.perf_counter()
        for _ in range(count):
            self.add(prompt, answer)
        tokens = self.finish()
        return tokens / (time.perf_counter() - began)

    def sleep(self, prompt_tokens: int) -> dict[str, float]:
        """What it takes to put the model away and to bring it back, and until the first token of a prompt then."""
        synchronize(self._device)
        began = time.perf_counter()
        freed, kept = self.engine.sleep()
        synchronize(self._device)
        asleep = time.perf_counter()
        self.engine.wake()
        synchronize(self._device)
        awake = time.perf_counter()
        self.add(prompt_tokens, 1)
        self.finish()
        first = time.perf_counter() - awake
        return {"sleep_seconds": asleep - began, "wake_seconds": awake - asleep, "first_token_seconds": first,
                "freed_bytes": freed, "host_bytes": kept}  # fmt: skip

    def close(self) -> None:
        """Release what runs beside the engine."""
        self.engine.close()

    def _start(self, batch: int, context: int) -> list[int]:
        """A batch that decodes in a steady state; its requests."""
        ramp = batch * context // self._smallest_chunk + batch
        grown = context + WARMUP_STEPS + DECODE_STEPS + PROFILED_STEPS + ramp + ROOM
        if batch * grown > self.info.kv_tokens or grown > self.info.context:
            raise LeftOut(f"the KV cache of {self.info.kv_tokens} tokens is too small")
        running = [self.add(context, self.info.context - context - 1) for _ in range(batch)]
        waiting = set(running)
        while waiting:
            waiting -= {request_id for request_id, tokens in self._step().items() if tokens}
        for _ in range(WARMUP_STEPS):
            self._step()
        stats = self.engine.stats()
        if stats.num_running != batch or stats.preemptions:
            raise RuntimeError(f"{stats.num_running} of {batch} requests run, {stats.preemptions} were preempted")
        return running

    def _mean_context(self) -> float:
        lengths = [sequence.num_tokens for sequence in self.engine._scheduler.running]
        return sum(lengths) / max(1, len(lengths))

    def _end(self, running: list[int]) -> None:
        self.engine.abort(running)
        self.finish()

    def _step(self) -> dict[int, int]:
        """Tokens by request. Raises RuntimeError where one failed."""
        tokens: dict[int, int] = {}
        for output in self.engine.step():
            if output.error is not None:
                raise RuntimeError(output.error)
            tokens[output.request_id] = tokens.get(output.request_id, 0) + len(output.token_ids)
        return tokens
