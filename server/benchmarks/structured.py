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
from pathlib import Path
from typing import Any

from engine.constraint import Constraint
from engine.errors import ConfigError
from engine.messages import EngineInfo
from engine.sampling_params import SamplingParams
from server.benchmarks.charts import Bars
from server.benchmarks.constraints import CASES, LOADS
from server.benchmarks.engine_options import add_engine, config_of
from server.benchmarks.engine_run import EngineRun, loaded
from server.benchmarks.outcome import Outcome, Table
from server.benchmarks.progress import Shown
from server.benchmarks.throughput import describe

HELP = "what compiling, masks and constrained answers cost"


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
    from server.benchmarks.constraint_costs import Alone  # brings llguidance, which other commands need not wait for

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
