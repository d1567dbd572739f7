"""What a constraint costs, and what forced tokens gain: `python -m bench.constrained SOURCE`.

The engine alone, in this process; all requests come at once and every answer has the same number of tokens. `free` has
no constraint, `strings` is a list of long strings whose text is up to the model. `record` is an object whose many names
are fixed: once its forced tokens are computed together, once one by one. The kinds take turns, so that what else the
machine does meets all of them.
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from unittest import mock

from tokenizers import Tokenizer

from engine.build import build_engine
from engine.config import EngineConfig
from engine.constraint import Constraint
from engine.engine import Engine
from engine.grammar.backend_llguidance import LlguidanceGrammar
from engine.messages import AddRequest
from engine.sampling_params import SamplingParams
from engine.weights.sources import resolve
from server.benchmarks.constraints import LOADS
from server.benchmarks.record import circumstances, percentile, table, write_json

KINDS = {**LOADS, "record, one by one": LOADS["record"]}


class Bench:
    """One engine, and the same prompts for every kind."""

    def __init__(self, source: str, threads: int, clients: int, tokens: int) -> None:
        directory = resolve(source).directory
        config = EngineConfig(name="bench", source=str(directory), device="cpu", threads=threads, context=1024,
                              max_num_seqs=clients, prefix_cache=False)  # fmt: skip
        self.engine: Engine = build_engine(config, lambda *_: None)[0]
        self._tokenizer = Tokenizer.from_file(str(Path(directory) / "tokenizer.json"))
        self._clients, self._tokens = clients, tokens
        self._requests = 0

    def round(self, kind: str) -> tuple[float, int]:
        """Tokens a second of one round, from its first token to its last, and its steps."""
        schema = KINDS[kind]
        constraint = None if schema is None else Constraint(kind="json_schema", source=json.dumps(schema), param="x")
        params = SamplingParams(
            max_tokens=self._tokens, ignore_eos=True, seed=1, temperature=1.0, constraint=constraint
        )
        for number in range(self._clients):
            self._requests += 1
            ids = self._tokenizer.encode(f"Story number {number}, told at length:").ids
            self.engine.add(AddRequest(self._requests, list(ids), params))
        began, tokens, steps = 0.0, 0, 0
        while tokens < self._clients * self._tokens:
            outputs = self.engine.step()
            new = sum(len(output.token_ids) for output in outputs)
            if new and not began:
                began, new = time.perf_counter(), 0
                tokens = sum(len(output.token_ids) for output in outputs)
            tokens += new
            steps += bool(outputs)
            if not outputs:
                time.sleep(0 if self.engine.has_work else 0.001)
        return (tokens - self._clients) / (time.perf_counter() - began), steps


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="as in models.yaml")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    bench = Bench(options.source, options.threads, options.clients, options.tokens)
    rates: dict[str, list[float]] = defaultdict(list)
    steps: dict[str, int] = {}
    for number in range(options.rounds + 1):
        for kind in KINDS:
            one_by_one = mock.patch.object(LlguidanceGrammar, "forced_tokens", lambda _: [])
            if kind == "record, one by one":
                with one_by_one:
                    rate, steps[kind] = bench.round(kind)
            else:
                rate, steps[kind] = bench.round(kind)
            if number:
                rates[kind].append(rate)
    bench.engine.close()
    free = percentile(rates["free"], 50)
    rows = [
        [kind, f"{percentile(found, 50):.0f}", f"{min(found):.0f}", f"{max(found):.0f}",
         f"{percentile(found, 50) / free:.3f}", str(steps[kind])]
        for kind, found in rates.items()
    ]  # fmt: skip
    print(table(["", "tok/s", "least", "most", "of free", "steps"], rows))
    if options.json:
        write_json(
            options.json, {**circumstances(), "options": vars(options), "tokens_per_second": rates, "steps": steps}
        )


if __name__ == "__main__":
    main()
