"""What constraints cost: `headrace bench structured`.

First each of some constraints alone: compiling it, its first mask, and a mask before every token of a text that follows
it, in CPU time of one thread. Then the engine under load: so many requests at once whose answers are all equally long,
free, held to strings whose text is up to the model, and to records whose many names are fixed. The kinds take turns, so
that what else the machine does meets all of them.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.constraint import Constraint
from engine.errors import ConfigError
from engine.grammar.backend_llguidance import compile_grammar, make_tokenizer
from engine.grammar.grammar import Grammar
from engine.grammar.repeats import unrepeated
from engine.grammar.source import grammar_text
from engine.grammar.token_index import TokenIndex
from engine.grammar.vocabulary import Vocabulary
from engine.messages import EngineInfo
from engine.sampling_params import SamplingParams
from server.benchmarks.charts import Bars
from server.benchmarks.constraints import CASES, LOADS, Case
from server.benchmarks.engine_options import add_engine, config_of
from server.benchmarks.engine_run import EngineRun, loaded
from server.benchmarks.outcome import Outcome, Table
from server.benchmarks.progress import Shown
from server.benchmarks.record import percentile
from server.benchmarks.throughput import describe

HELP = "what compiling, masks and constrained answers cost"
COMPILES = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    add_engine(parser)
    parser.add_argument("--clients", type=int, default=16, metavar="N", help="requests at once [16]")
    parser.add_argument("--prompt-tokens", type=int, default=64, metavar="N", help="of each [64]")
    parser.add_argument("--max-tokens", type=int, default=96, metavar="N", help="of each answer [96]")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="turns of all kinds [3]")


def run(options: argparse.Namespace) -> Outcome:
    """Measure. Raises `HeadraceError`."""
    if min(options.clients, options.prompt_tokens, options.max_tokens, options.repeats) < 1:
        raise ConfigError("--clients, --prompt-tokens, --max-tokens and --repeats are 1 or more")
    with Shown() as shown:
        return asyncio.run(_measure(options, shown))


async def _measure(options: argparse.Namespace, shown: Shown) -> Outcome:
    config = config_of(options, max_num_seqs=options.clients)
    options.label = options.label or config.name
    shown.stage(f"{options.label}: loading")
    rates: dict[str, list[float]] = {kind: [] for kind in LOADS}
    async with loaded(config) as engine:
        info = engine.info
        shown.stage("compiling and masks", len(CASES))
        alone = Alone(Path(info.model_dir), size=info.vocab_size, eos_token_ids=info.eos_token_ids)
        cases = []
        for case in CASES:
            cases.append(alone.measure(case))
            shown.advance()
        shown.stage(f"{options.label}: under load", (options.repeats + 1) * len(LOADS))
        for turn in range(options.repeats + 1):
            for kind, schema in LOADS.items():
                rate = await _rate(engine, schema, options)
                shown.advance()
                if turn:  # the first builds and compiles what is built once
                    rates[kind].append(rate)
    return _outcome(options, info, cases, rates)


class Alone:
    """Constraints one after another, on a model's own vocabulary."""

    def __init__(self, directory: Path, *, size: int, eos_token_ids: Sequence[int]) -> None:
        """`size` is the width of the logits. Raises `ModelLoadError` where the model has no tokenizer."""
        self._vocabulary = Vocabulary.load(directory, size=size, eos_token_ids=eos_token_ids)
        self._tokenizer = make_tokenizer(self._vocabulary)
        self._index = TokenIndex(self._vocabulary)
        self._row = np.zeros(-(-self._vocabulary.size // 32), dtype=np.int32)

    def measure(self, case: Case) -> dict[str, Any]:
        """Milliseconds of compiling and of the first mask, microseconds of the masks of its text."""
        constraint = Constraint(kind=case.kind, source=case.source, param="response_format")
        times, firsts = [], []
        for _ in range(COMPILES):
            began = time.thread_time()
            grammar = self._compiled(constraint)
            compiled = time.thread_time()
            grammar.fill_bitmask(self._row)
            firsts.append(1e3 * (time.thread_time() - compiled))
            times.append(1e3 * (compiled - began))
        masks = self._masks(grammar, case.text)
        return {"name": case.name, "compile_ms": statistics.median(times), "first_mask_ms": statistics.median(firsts),
                "tokens": len(masks), "mask_us": {f"p{p}": percentile(masks, p) for p in (50, 99)}}  # fmt: skip

    def _compiled(self, constraint: Constraint) -> Grammar:
        made_of = grammar_text(constraint)
        inner = compile_grammar(self._tokenizer, made_of.text, constraint)
        return unrepeated(inner, made_of.names, made_of.items, self._index, "")

    def _masks(self, grammar: Grammar, text: str) -> list[float]:
        times = []
        for token_id in self._vocabulary.spelled(text.encode()):
            began = time.thread_time()
            grammar.fill_bitmask(self._row)
            times.append(1e6 * (time.thread_time() - began))
            grammar.accept(token_id)
        return times


async def _rate(engine: EngineRun, schema: dict[str, Any] | None, options: argparse.Namespace) -> float:
    """Tokens a second from the first token to the last."""
    held = None if schema is None else Constraint(kind="json_schema", source=json.dumps(schema), param="schema")
    params = SamplingParams(
        max_tokens=options.max_tokens, ignore_eos=True, seed=1, temperature=1.0, constraint=held
    )  # fmt: skip
    requests = [(engine.made_up(options.prompt_tokens), params) for _ in range(options.clients)]
    answers = await engine.answers(requests)
    first, last = min(one.times[0] for one in answers), max(one.times[-1] for one in answers)
    return sum(len(one.times) for one in answers) / (last - first)


def _outcome(
    options: argparse.Namespace, info: EngineInfo, cases: list[dict[str, Any]], rates: dict[str, list[float]]
) -> Outcome:
    free = statistics.median(rates["free"])
    alone = [
        [case["name"], f"{case['compile_ms']:.2f}", f"{case['first_mask_ms']:.2f}", str(case["tokens"]),
         f"{case['mask_us']['p50']:.0f}", f"{case['mask_us']['p99']:.0f}"]
        for case in cases
    ]  # fmt: skip
    loads = [
        [kind, f"{statistics.median(found):.1f}", f"{min(found):.1f}", f"{max(found):.1f}",
         f"{statistics.median(found) / free:.3f}"]
        for kind, found in rates.items()
    ]  # fmt: skip
    tables = (
        Table(caption="alone, on the model's vocabulary", rows=alone,
              header=["constraint", "compile ms", "first mask ms", "tokens", "mask us p50", "p99"]),
        Table(caption=f"{options.label}, {options.clients} requests at once", rows=loads,
              header=["answers", "tok/s", "least", "most", "of free"]),
    )  # fmt: skip
    bars = Bars(title="Constrained answers beside free ones", x="tokens a second", groups=("tok/s",),
                rows=tuple((kind, (statistics.median(found),)) for kind, found in rates.items()))  # fmt: skip
    found = {"engine": describe(info), "constraints": cases, "tokens_per_second": rates}
    return Outcome(kind="structured", label=options.label, found=found, tables=tables, charts=(bars,))
