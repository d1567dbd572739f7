"""One batch at a time in the engine alone: `headrace bench latency`.

So many requests come together, and nothing else. The time to the first token is that of their prompts; then all decode
side by side, and the time of a token is that of a step. It is also shown as a share of what the device could do at
best: the time that moving weights, keys and values at the rate of a copy would take.
"""

import argparse
import asyncio
import statistics
from typing import Any

from engine.errors import ConfigError
from engine.sampling_params import SamplingParams
from server.benchmarks.charts import Bars, Line, Lines
from server.benchmarks.engine_options import add_engine, config_of
from server.benchmarks.engine_run import EngineRun, Timed, ceilings, loaded
from server.benchmarks.outcome import Outcome, Table
from server.benchmarks.progress import Shown
from server.benchmarks.record import percentile
from server.benchmarks.throughput import ceilings_json, ceilings_words, describe

HELP = "batches of several sizes in the engine alone"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    add_engine(parser)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16], metavar="N", help="[1 4 16]")
    parser.add_argument("--prompt-tokens", type=int, default=256, metavar="N", help="of each [256]")
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N", help="of each answer [64]")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="of each; medians are shown [3]")


def run(options: argparse.Namespace) -> Outcome:
    """Measure. Raises `HeadraceError`."""
    if min(*options.batches, options.prompt_tokens, options.repeats, 1) < 1 or options.max_tokens < 2:
        raise ConfigError("--batches, --prompt-tokens and --repeats are 1 or more, --max-tokens 2 or more")
    with Shown() as shown:
        return asyncio.run(_measure(options, shown))


async def _measure(options: argparse.Namespace, shown: Shown) -> Outcome:
    config = config_of(options, max_num_seqs=max(options.batches))
    options.label = options.label or config.name
    shown.stage(f"{options.label}: loading")
    levels = []
    async with loaded(config) as engine:
        for batch in options.batches:
            shown.stage(f"{options.label}: batch {batch}", options.repeats)
            await _batch(engine, batch, options)  # the first builds what is built once
            runs = []
            for _ in range(options.repeats):
                runs.append(_figures(await _batch(engine, batch, options)))
                shown.advance()
            levels.append({"batch": batch, **_middle(runs), "runs": runs})
        info, costs = engine.info, engine.costs()
    shown.stage("measuring what the device can do")
    best = ceilings(info, config.threads)
    context = options.prompt_tokens + options.max_tokens / 2
    for level in levels:
        ideal = costs.decode_seconds(best, level["batch"], context)
        level["share_of_ceiling"] = 1000 * ideal / level["token_ms"]
        prompts = level["batch"] * costs.prompt_seconds(best, options.prompt_tokens)
        level["prompt_share_of_ceiling"] = 1000 * prompts / level["ttft_ms"]
    found = {"engine": describe(info), "ceilings": ceilings_json(best), "levels": levels}
    return Outcome(
        kind="latency", label=options.label, found=found, tables=(_table(options, levels),), charts=_charts(levels),
        notes=(ceilings_words(best),),
    )  # fmt: skip


async def _batch(engine: EngineRun, batch: int, options: argparse.Namespace) -> list[Timed]:
    params = SamplingParams(max_tokens=options.max_tokens, temperature=0, ignore_eos=True)
    return await engine.answers([(engine.made_up(options.prompt_tokens), params) for _ in range(batch)])


def _figures(answers: list[Timed]) -> dict[str, float]:
    """Milliseconds: to the last of the first tokens, of a step in which all decode, and in all."""
    began = min(one.sent for one in answers)
    all_decode = max(one.times[0] for one in answers)
    gaps = [after - before for one in answers for before, after in zip(one.times, one.times[1:], strict=False)
            if before >= all_decode]  # fmt: skip
    return {
        "ttft_ms": 1000 * max(one.ttft for one in answers),
        "token_ms": 1000 * sum(gaps) / max(1, len(gaps)),
        "token_p99_ms": 1000 * percentile(gaps, 99),
        "all_ms": 1000 * (max(one.times[-1] for one in answers) - began),
    }


def _middle(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def _table(options: argparse.Namespace, levels: list[dict[str, Any]]) -> Table:
    header = ["batch", "TTFT ms", "of ceiling", "token ms", "p99", "of ceiling", "decode tok/s", "spread", "all s"]
    rows = []
    for level in levels:
        tokens = [run["token_ms"] for run in level["runs"]]
        scatter = (max(tokens) - min(tokens)) / level["token_ms"]
        rows.append([
            str(level["batch"]), f"{level['ttft_ms']:.1f}", f"{level['prompt_share_of_ceiling']:.0%}",
            f"{level['token_ms']:.2f}", f"{level['token_p99_ms']:.2f}", f"{level['share_of_ceiling']:.0%}",
            f"{1000 * level['batch'] / level['token_ms']:.1f}", f"{scatter:.0%}", f"{level['all_ms'] / 1000:.2f}",
        ])  # fmt: skip
    caption = f"{options.label}, prompts of {options.prompt_tokens}, answers of {options.max_tokens}"
    return Table(caption=caption, header=header, rows=rows)


def _charts(levels: list[dict[str, Any]]) -> tuple[Lines, Bars]:
    points = tuple((level["token_ms"], 1000 * level["batch"] / level["token_ms"]) for level in levels)
    labels = tuple(f"batch {level['batch']}" for level in levels)
    lines = Lines(title="Decoding: throughput against latency", x="time of a token, ms", y="tokens a second",
                  lines=(Line(name="decoding", points=points, labels=labels),))  # fmt: skip
    shares = tuple(
        (label, (100 * level["share_of_ceiling"], 100 * level["prompt_share_of_ceiling"]))
        for label, level in zip(labels, levels, strict=True)
    )
    bars = Bars(title="Of what the device can do", x="percent", groups=("decoding", "prompts"), rows=shares)
    return lines, bars
