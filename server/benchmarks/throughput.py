"""Many requests at once to the engine alone, to the end: `headrace bench throughput`.

No HTTP and no text: token ids go to an engine in a process of its own, as the server has it. The rate is also shown as
a share of what the device could do at best: move weights, keys and values at the rate of a copy, and do the operations
of prompts at the rate of a large product. Both rates are measured on the same device.
"""

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

from engine.costs import Ceilings
from engine.errors import ConfigError
from engine.sampling_params import SamplingParams
from server.benchmarks.amounts import count
from server.benchmarks.engine_options import add_engine, config_of
from server.benchmarks.engine_run import EngineRun, Timed, ceilings, loaded
from server.benchmarks.figures import spread
from server.benchmarks.outcome import Outcome, Table
from server.benchmarks.progress import Shown
from server.benchmarks.workload import add_workload, workload_of
from server.prompt.tokenizer import ChatTokenizer

HELP = "many requests at once to the engine alone"
SETTLE_REQUESTS = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    add_engine(parser)
    parser.add_argument("--requests", type=count, default=64, metavar="N", help="that all come at once [64]")
    parser.add_argument(
        "--max-num-seqs", type=count, default=0, metavar="N", help="most in one step [the engine's own]"
    )
    parser.add_argument("--repeats", type=count, default=3, metavar="N", help="each with other prompts [3]")
    add_workload(parser, prompt="256", answer="128")


def run(options: argparse.Namespace) -> Outcome:
    """Measure. Raises `HeadraceError`."""
    if options.requests < 1 or options.repeats < 1:
        raise ConfigError("--requests and --repeats are 1 or more")
    with Shown() as shown:
        return asyncio.run(_measure(options, shown))


async def _measure(options: argparse.Namespace, shown: Shown) -> Outcome:
    config = config_of(options, max_num_seqs=options.max_num_seqs)
    options.label = options.label or config.name
    shown.stage(f"{options.label}: loading")
    rounds = []
    async with loaded(config) as engine:
        for turn in range(options.repeats + 1):
            requests = _requests(engine, options, turn)
            if not turn:  # the first builds what is built once
                await engine.answers(requests[:SETTLE_REQUESTS])
                continue
            shown.stage(f"{options.label}: {turn} of {options.repeats}", len(requests))
            began = time.perf_counter()
            answers = await engine.answers(requests, shown.advance)
            rounds.append((answers, time.perf_counter() - began))
        info, costs = engine.info, engine.costs()
    shown.stage("measuring what the device can do")
    best = ceilings(info, config.threads)
    levels = []
    for answers, seconds in rounds:
        lengths = [(one.prompt_tokens, len(one.times)) for one in answers]
        ideal = costs.load_seconds(best, lengths, min(info.max_num_seqs, len(lengths)))
        levels.append({**_figures(answers, seconds), "share_of_ceiling": ideal / seconds})
    return _outcome(options, info, best, levels)


def _requests(engine: EngineRun, options: argparse.Namespace, turn: int) -> list[tuple[list[int], SamplingParams]]:
    workload = workload_of(options, turn=turn)
    tokenizer = ChatTokenizer.load(Path(engine.info.model_dir)) if options.conversations else None
    found = []
    for number in range(options.requests):
        asked = workload.asked(number)
        if tokenizer is not None:
            prompt = tokenizer.encode_prompt(asked.messages)
        else:
            prompt = engine.made_up(options.prompt_tokens.of(number, f"{options.seed} {turn}"))
        params = SamplingParams(max_tokens=asked.max_tokens, temperature=0, ignore_eos=True)
        found.append((prompt, params))
    return found


def _figures(answers: list[Timed], seconds: float) -> dict[str, Any]:
    prompts, tokens = sum(one.prompt_tokens for one in answers), sum(len(one.times) for one in answers)
    return {
        "requests": len(answers),
        "seconds": seconds,
        "prompt_tokens": prompts,
        "output_tokens": tokens,
        "output_tokens_per_s": tokens / seconds,
        "all_tokens_per_s": (prompts + tokens) / seconds,
        "requests_per_s": len(answers) / seconds,
        "ttft_ms": spread([one.ttft for one in answers]),
    }


def _outcome(options: argparse.Namespace, info: Any, best: Ceilings, rounds: list[dict[str, Any]]) -> Outcome:
    ordered = sorted(rounds, key=lambda one: one["output_tokens_per_s"])
    middle, low, high = ordered[len(ordered) // 2], ordered[0], ordered[-1]
    header = [
        "requests",
        "prompt",
        "answer",
        "tok/s",
        "least",
        "most",
        "with prompts",
        "req/s",
        "TTFT p50 s",
        "of ceiling",
    ]
    row = [
        str(middle["requests"]), f"{middle['prompt_tokens'] / middle['requests']:.0f}",
        f"{middle['output_tokens'] / middle['requests']:.0f}", f"{middle['output_tokens_per_s']:.1f}",
        f"{low['output_tokens_per_s']:.1f}", f"{high['output_tokens_per_s']:.1f}", f"{middle['all_tokens_per_s']:.0f}",
        f"{middle['requests_per_s']:.2f}", f"{middle['ttft_ms']['p50'] / 1000:.2f}",
        f"{middle['share_of_ceiling']:.0%}",
    ]  # fmt: skip
    return Outcome(
        kind="throughput", label=options.label, tables=(Table(caption=options.label, header=header, rows=[row]),),
        found={"engine": describe(info), "ceilings": ceilings_json(best), "rounds": rounds},
        notes=(ceilings_words(best),),
    )  # fmt: skip


def describe(info: Any) -> dict[str, Any]:
    """What an engine says of itself, as far as it bears on speed."""
    names = (
        "architecture",
        "device",
        "dtype",
        "attention",
        "max_num_seqs",
        "weights_bytes",
        "kv_bytes",
        "num_parameters",
    )
    return {name: getattr(info, name) for name in (*names, "load_seconds", "numerics")}


def ceilings_json(best: Ceilings) -> dict[str, Any]:
    """For JSON."""
    return {"bytes_per_second": best.bytes_per_second, "flops": best.flops, "fp8_flops": best.fp8_flops}


def ceilings_words(best: Ceilings) -> str:
    """The device's rates as a line below the table."""
    fp8 = f", in FP8 {best.fp8_flops / 1e12:.3g}" if best.fp8_flops else ""
    return (
        f"ceiling: a copy moves {best.bytes_per_second / 1e9:.3g} GB/s, "
        f"a large product does {best.flops / 1e12:.3g} TFLOP/s{fp8}"
    )
