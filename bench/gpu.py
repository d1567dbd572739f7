"""How close the engine comes to what a GPU can do: `python -m bench.gpu`, or `make gpu` with the tests before it.

Full-size models with random weights, made on the device; no network. Each rate is shown as a share of its ceiling:
decoding by the time to read the weights and the cache at the bandwidth of a copy, prompts by the time of their products
at the rate of a large matrix product, both measured first. `--parts` picks parts, `--models` models.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bench.record import circumstances, percentile, table, write_json
from engine.build import build_engine
from engine.config import EngineConfig
from engine.engine import Engine
from engine.messages import AddRequest, EngineInfo
from engine.sampling_params import SamplingParams

MODELS = ("Llama-3.1-8B", "gemma-2-2b", "Qwen2.5-1.5B", "phi-4", "Qwen2.5-32B")
PARTS = ("ceilings", "decode", "prefill", "offline")
BATCHES = (1, 8, 64, 256)
PROMPTS = (2048, 16384)
DECODE_STEPS = 64
WARMUP_STEPS = 8
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device does at best: bytes copied a second (read and written), operations a second in bf16."""

    bytes_per_second: float
    flops: float


def measure_ceilings(device: torch.device, *, copied: int, width: int) -> Ceilings:
    """Copy `copied` bytes, and multiply square matrices of `width`, several times; the best of each."""
    source = torch.empty(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(width, width, device=device, dtype=torch.bfloat16) for _ in range(2))
    return Ceilings(
        2 * copied / best_seconds(lambda: target.copy_(source), device),
        2 * width**3 / best_seconds(lambda: left @ right, device),
    )


def best_seconds(work: Callable[[], object], device: torch.device, rounds: int = 8) -> float:
    """The shortest time of some work, begun and ended with an idle device."""
    times = []
    for _ in range(rounds):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Bench:
    """One model in one engine."""

    def __init__(self, model: str, device: torch.device, ceilings: Ceilings | None, context: int) -> None:
        began = time.perf_counter()
        config = EngineConfig(
            name=model, source=f"random://{model}", device=device.type, context=context, prefix_cache=False,
            max_num_seqs=max(BATCHES),
        )  # fmt: skip
        self.engine: Engine
        self.info: EngineInfo
        self.engine, self.info = build_engine(config, lambda *_: None)
        self.load_seconds = time.perf_counter() - began
        self._device = device
        self._ceilings = ceilings
        self._requests = 0

    def add(self, prompt_tokens: int, max_tokens: int) -> None:
        """One request that never ends early."""
        self._requests += 1
        ids = [(7919 * self._requests + 31 * at) % (self.info.vocab_size - 1) for at in range(prompt_tokens)]
        params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
        self.engine.add(AddRequest(self._requests, ids, params))

    def finish(self) -> int:
        """Run until nothing is left; the tokens that came."""
        tokens = 0
        while self.engine.has_work:
            for output in self.engine.step():
                assert output.error is None, output.error
                tokens += len(output.token_ids)
        return tokens

    def decode(self, batch: int, context: int) -> dict[str, float]:
        """The rate of a full batch of decoding rows, first to last, the prompts aside."""
        for _ in range(batch):
            self.add(context, WARMUP_STEPS + DECODE_STEPS + batch)
        self._start_all(batch)
        for _ in range(WARMUP_STEPS):
            self.engine.step()
        times = []
        for _ in range(DECODE_STEPS):
            began = time.perf_counter()
            self.engine.step()
            times.append(time.perf_counter() - began)
        self.finish()
        seconds = sum(times) / len(times)
        cached = self.info.kv_bytes / (self.info.num_blocks * self.info.block_size)
        found = {"tokens_per_second": batch / seconds, "step_ms": seconds * 1e3}
        found["step_ms_p99"] = percentile(times, 99) * 1e3
        if self._ceilings is not None:
            moved = self.info.weights_bytes + batch * context * cached
            found["share_of_ceiling"] = moved / self._ceilings.bytes_per_second / seconds
        return found

    def _start_all(self, batch: int) -> None:
        """Step until each of the newest `batch` requests has its first token."""
        waiting = set(range(self._requests - batch + 1, self._requests + 1))
        while waiting:
            waiting -= {output.request_id for output in self.engine.step() if output.token_ids}

    def prefill(self, prompt_tokens: int) -> dict[str, float]:
        """The rate of one prompt with nothing beside it; the second of two, so that everything is built."""
        for _ in range(2):
            began = time.perf_counter()
            self.add(prompt_tokens, 1)
            self.finish()
            seconds = time.perf_counter() - began
        found = {"tokens_per_second": prompt_tokens / seconds}
        if self._ceilings is not None:
            flops = 2.0 * self.info.num_parameters * prompt_tokens
            found["share_of_ceiling"] = flops / self._ceilings.flops / seconds
        return found

    def offline(self, requests: int, prompt_tokens: int, max_tokens: int) -> dict[str, float]:
        """Everything at once, to the end."""
        began = time.perf_counter()
        for _ in range(requests):
            self.add(prompt_tokens, max_tokens)
        tokens = self.finish()
        return {"tokens_per_second": tokens / (time.perf_counter() - began)}


def measure(name: str, device: torch.device, ceilings: Ceilings | None, options: argparse.Namespace) -> dict[str, Any]:
    """All chosen parts of one model."""
    longest = max([*options.prompts, options.context, 2 * options.offline_tokens]) + 1024
    bench = Bench(name, device, ceilings, longest)
    info = bench.info
    found: dict[str, Any] = {"load_seconds": bench.load_seconds, "dtype": info.dtype, "attention": info.attention,
                             "parameters": info.num_parameters, "weights_gib": info.weights_bytes / GIB,
                             "kv_tokens": info.num_blocks * info.block_size}  # fmt: skip
    if "decode" in options.parts:
        found["decode"] = {str(batch): bench.decode(batch, options.context) for batch in options.batches}
    if "prefill" in options.parts:
        found["prefill"] = {str(length): bench.prefill(length) for length in options.prompts}
    if "offline" in options.parts:
        found["offline"] = bench.offline(options.requests, options.offline_tokens, options.offline_tokens)
    bench.engine.close()
    del bench
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def rows_of(models: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The table's rows: model, what, tokens a second, share of the ceiling."""
    rows = []
    for name, found in models.items():
        if "error" in found:
            rows.append([name, found["error"][:60], "", ""])
            continue
        measured = {f"decode {batch}": one for batch, one in found.get("decode", {}).items()}
        measured |= {f"prompt of {length}": one for length, one in found.get("prefill", {}).items()}
        measured |= {"offline": found["offline"]} if "offline" in found else {}
        for what, one in measured.items():
            share = one.get("share_of_ceiling")
            rows.append([name, what, f"{one['tokens_per_second']:.0f}", "" if share is None else f"{share:.0%}"])
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measure, write JSON, print a table last; 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", default=MODELS, help="shipped architectures, or what may stand behind random://")
    add("--parts", nargs="+", default=PARTS, choices=PARTS)
    add("--batches", nargs="+", type=int, default=BATCHES)
    add("--prompts", nargs="+", type=int, default=PROMPTS)
    add("--context", type=int, default=512, help="of the decoding rows")
    add("--requests", type=int, default=512, help="of the offline part")
    add("--offline-tokens", type=int, default=1024, help="of each prompt and each answer")
    add("--device", default="cuda")
    add("--json", metavar="FILE")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("bench.gpu needs a CUDA GPU, and torch sees none")
        return 2
    small = device.type == "cpu"
    ceilings = None
    if "ceilings" in options.parts:
        ceilings = measure_ceilings(device, copied=GIB // (64 if small else 1) * 4, width=256 if small else 8192)
        print(f"copy {ceilings.bytes_per_second / 1e12:.2f} TB/s, products {ceilings.flops / 1e12:.0f} TFLOP/s in bf16")
    models: dict[str, dict[str, Any]] = {}
    for name in options.models:
        try:
            models[name] = measure(name, device, ceilings, options)
        except Exception as error:  # the other models still have their turn
            models[name] = {"error": f"{type(error).__name__}: {error}"}
        print(f"{name}: done", flush=True)
    if options.json:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        write_json(options.json, {**circumstances(), "device": name, "models": models,
                                  "ceilings": None if ceilings is None else asdict(ceilings)})  # fmt: skip
    print(table(["model", "", "tok/s", "of ceiling"], rows_of(models)))
    return 1 if any("error" in found for found in models.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
