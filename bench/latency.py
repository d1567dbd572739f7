"""What one request may cost another, and what it spares it, held to bounds: `make latency`.

The engine alone, in this process, on a machine that does nothing else. What is promised:

- While `--streams` (8) decode, a prompt of `--prompt` (6,000) tokens at most triples the 99th percentile of their
  inter-token latency.
- A second request with the same first 2,000 tokens has at most a tenth of the first one's time to first token.
- While `--streams` decode, the encoding of ten images at most triples that percentile too.
- A second request about an image has at most a fifth of the first one's time to first token.

Ends with 1 if one is broken. What they rest on is tested without a clock: that a shared prefix is not computed again
(tests/engine/test_engine.py), and how prompts are cut into pieces beside streams (tests/engine/scheduling).
"""

import argparse
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.image_latency import ImageBench
from engine.build import build_engine
from engine.config import EngineConfig
from engine.engine import Engine
from engine.messages import AddRequest
from engine.sampling_params import SamplingParams
from server.benchmarks.record import circumstances, percentile, table, write_json
from server.config.settings import load_models_file

ROOT = Path(__file__).resolve().parent.parent
SHARED_TOKENS = 2000
WARM_STEPS, QUIET_STEPS = 40, 150
LEAST_STEPS = 10
"""Beside a long prompt or images, for a percentile to mean anything."""
IMAGES = 10


@dataclass(frozen=True, slots=True)
class Promise:
    """Two measured times in seconds, and the most that the second may be of the first."""

    name: str
    before: float
    after: float
    bound: float

    @property
    def ratio(self) -> float:
        """How many times the first the second is."""
        return self.after / self.before

    @property
    def is_kept(self) -> bool:
        """Whether the bound holds."""
        return self.ratio <= self.bound


class Bench:
    """One engine, and prompts that share nothing unless they are meant to."""

    def __init__(self, source: str, threads: int) -> None:
        config = EngineConfig(name="bench", source=source, device="cpu", memory="1GiB", threads=threads)
        self.engine: Engine = build_engine(config, lambda *_: None)[0]
        self._requests = 0

    def add(self, token_ids: list[int], max_tokens: int) -> int:
        """Queue a request; its number."""
        self._requests += 1
        params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
        self.engine.add(AddRequest(self._requests, token_ids, params))
        return self._requests

    def step(self) -> float:
        """Seconds of one step."""
        began = time.perf_counter()
        self.engine.step()
        return time.perf_counter() - began

    def first_token(self, token_ids: list[int]) -> float:
        """Seconds until a request alone has its first token."""
        began = time.perf_counter()
        self.add(token_ids, 1)
        while not any(output.token_ids for output in self.engine.step()):
            pass
        return time.perf_counter() - began

    def prefix(self) -> Promise:
        """The second request's time to first token after the first one's."""
        self.first_token(_prompt(64, salt=1))  # the machine's own first time
        shared = _prompt(SHARED_TOKENS, salt=2)
        cold = self.first_token([*shared, 5, 6, 7])
        warm = min(self.first_token([*shared, 8 + number, 9, 10]) for number in range(3))
        return Promise("time to first token, prefix shared", cold, warm, 1 / 10)

    def long_prompt(self, num_streams: int, num_tokens: int) -> Promise:
        """The 99th percentile of steps while a long prompt is computed beside streams, after that of steps without."""
        streams = [self.add(_prompt(32, salt=10 + stream), 2000) for stream in range(num_streams)]
        for _ in range(WARM_STEPS):
            self.engine.step()
        quiet = [self.step() for _ in range(QUIET_STEPS)]
        self.add(_prompt(num_tokens, salt=3), 1)
        beside = []
        while (found := self.engine.stats()).num_waiting or found.num_running > num_streams:
            beside.append(self.step())
        self.engine.abort(streams)
        self.engine.step()
        return _inter_token("long prompt", quiet, beside)


def _prompt(length: int, salt: int) -> list[int]:
    return [(salt * 7919 + i * 31) % 40_000 + 100 for i in range(length)]


def _inter_token(what: str, quiet: list[float], beside: list[float]) -> Promise:
    """The 99th percentile of steps beside something, after that of steps without."""
    if len(beside) < LEAST_STEPS:
        raise SystemExit(f"the {what} took {len(beside)} steps, which say nothing; at least {LEAST_STEPS} are needed")
    return Promise(f"inter-token latency p99, {what}", percentile(quiet, 99), percentile(beside, 99), 3)


def image_promises(num_streams: int, threads: int) -> list[Promise]:
    """Those of a model that sees."""
    bench = ImageBench(threads)
    cold, warm = bench.second_turn()
    quiet, beside = bench.beside_images(num_streams, IMAGES)
    bench.close()
    return [
        Promise("time to first token, image seen before", cold, warm, 1 / 5),
        _inter_token("ten images", quiet, beside),
    ]


def main() -> int:
    """Measure, print, and judge; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="as in models.yaml; by default that of its default model")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=6000)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    file = load_models_file(ROOT / "models.yaml")
    bench = Bench(options.source or file.find(file.default).engine_config().source, options.threads)
    promises = [bench.prefix(), bench.long_prompt(options.streams, options.prompt)]
    bench.engine.close()
    promises += image_promises(options.streams, options.threads)
    rows = [
        [one.name, f"{one.before * 1e3:.0f}", f"{one.after * 1e3:.0f}", f"{one.ratio:.2f}", f"{one.bound:.2f}",
         "kept" if one.is_kept else "BROKEN"]
        for one in promises
    ]  # fmt: skip
    print(table(["", "before, ms", "after, ms", "ratio", "at most", ""], rows))
    if options.json:
        measured = [{**asdict(one), "ratio": round(one.ratio, 3), "is_kept": one.is_kept} for one in promises]
        write_json(options.json, {**circumstances(), "options": vars(options), "promises": measured})
    return 0 if all(one.is_kept for one in promises) else 1


if __name__ == "__main__":
    sys.exit(main())
