"""What a step costs the host beside the model: `headrace bench schedule`.

The real scheduler, block manager, packing, sampling and messages around a model that computes nothing. `decode` has
every sequence add one token a step; `mixed` has one slot that always computes a prompt in chunks beside the others.
Times are CPU microseconds of one thread, so that other load hardly changes them.
"""

import argparse
from typing import Any

from server.benchmarks.amounts import count
from server.benchmarks.charts import Timeline
from server.benchmarks.engine_run import measured
from server.benchmarks.outcome import Outcome, Table
from server.benchmarks.progress import Shown

HELP = "what a step costs the host beside the model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    parser.add_argument(
        "--running", type=count, nargs="+", default=[1, 64, 256], metavar="N", help="sequences [1 64 256]"
    )
    parser.add_argument("--context", type=count, default=1000, metavar="TOKENS", help="of each at the start [1000]")
    parser.add_argument("--steps", type=count, default=300, metavar="N", help="[300]")


def run(options: argparse.Namespace) -> Outcome:
    """Measure. Raises `MeasureError`."""
    options.label = options.label or "a step beside the model"
    with Shown() as shown:
        shown.stage(f"{options.label}: {options.steps} steps of each")
        running = [str(number) for number in options.running]
        arguments = ["--context", str(options.context), "--steps", str(options.steps), "--running", *running]
        cases = measured("engine.measuring.step", *arguments)
    return outcome_of(options.label, cases)


def outcome_of(label: str, cases: list[dict[str, Any]]) -> Outcome:
    """A row for each case, and the timeline of the largest."""
    columns = list(cases[0]["microseconds"])
    rows = [
        [case["case"], str(case["running"]), *(_cell(case["microseconds"][name]) for name in columns)] for case in cases
    ]
    table = Table(
        caption=f"{label}, us", header=["case", "running", *(f"{name} p50/p99" for name in columns)], rows=rows
    )
    return Outcome(kind="schedule", label=label, found={"cases": cases}, tables=(table,),
                   charts=tuple(map(_timeline, cases[-2:])))  # fmt: skip


def _cell(spread: dict[str, float]) -> str:
    return f"{spread['p50']:.0f}/{spread['p99']:.0f}"


def _timeline(case: dict[str, Any]) -> Timeline:
    spans, at = [], 0.0
    for name in list(case["microseconds"])[1:-1]:  # what stands between are the parts
        took = case["microseconds"][name]["p50"]
        spans.append((name, at, at + took))
        at += took
    title = f"A step of {case['running']} sequences, {case['case']}: the host's part"
    return Timeline(title=title, x="microseconds, medians", spans=tuple(spans))
