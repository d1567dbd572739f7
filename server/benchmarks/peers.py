"""Headrace and other servers on this machine, one after another: same weights, same prompts, greedy.

Starts each server in turn, waits for its first answer, puts it under the load of `headrace bench serve`, and ends it.
docs/benchmarks.md says how to set the others up. Let nothing else run meanwhile.
"""

import argparse
import asyncio
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.cache import cache_dir
from engine.errors import ConfigError
from server.benchmarks import serve
from server.benchmarks.amounts import count, positive
from server.benchmarks.charts import Bars, Chart
from server.benchmarks.chat_stream import Endpoint
from server.benchmarks.outcome import Outcome, Table
from server.benchmarks.peer_servers import MODEL, PEERS, Peer, Setting
from server.benchmarks.peer_weights import package_file
from server.benchmarks.progress import Shown
from server.benchmarks.record import write_json
from server.benchmarks.server_process import free_port, last_words, memory_mib, running, wait_for_answer
from server.benchmarks.workload import add_workload

HELP = "compare servers on this machine"
DEFAULT_HOME = cache_dir() / "peers"
FAR_APART = 10_000
"""Numbers of requests that lie between levels, so that none finds the prompts of another in a cache."""
FIGURES = (("tok/s", ("output_tokens_per_s",), ".0f"), ("TTFT ms", ("ttft_ms", "p50"), ".0f"),
           ("ITL p99 ms", ("itl_ms", "p99"), ".1f"))  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    which = parser.add_argument_group("which servers, and what they serve")
    which.add_argument("--only", nargs="+", choices=PEERS, metavar="NAME", help=f"of {', '.join(PEERS)}")
    which.add_argument("--gguf", type=Path, metavar="FILE", help="a .gguf file, for those that read one [SmolLM2's]")
    which.add_argument(
        "--source", default="", metavar="SOURCE",
        help="a directory or a hub id, which all others serve [the default model]",
    )  # fmt: skip
    which.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16",
        help="of those that read no .gguf file; a CPU without bf16 products is faster in float32 [%(default)s]",
    )  # fmt: skip
    which.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="[%(default)s]")
    which.add_argument("--context", type=count, default=2048, metavar="TOKENS", help="of every server [2048]")
    which.add_argument("--slots", type=count, default=0, metavar="N", help="most requests at a time [most clients]")
    which.add_argument("--home", type=Path, default=DEFAULT_HOME, help="environments and weights [%(default)s]")
    which.add_argument(
        "--start-seconds", type=positive, default=600, help="a server may take to its first answer [600]"
    )
    parser.add_argument("--rounds", type=count, default=1, help="of all servers in turn; medians are shown [1]")
    serve.add_clients(parser)
    add_workload(parser)
    parser.set_defaults(**serve.ONLY_CLIENTS)


def run(options: argparse.Namespace) -> Outcome:
    """Measure all servers. Raises `ConfigError` where one is not set up."""
    wants_gguf = bool(options.gguf) and not options.source
    options.only = options.only or [
        name for name, peer in PEERS.items()
        if options.device in peer.devices and (peer.reads_gguf or (not wants_gguf and options.dtype in peer.dtypes))
        and not (peer.reads_gguf and options.source)
    ]  # fmt: skip
    for name in options.only:
        if not PEERS[name].reads_gguf and options.dtype not in PEERS[name].dtypes:
            raise ConfigError(f"{name} computes in {' or '.join(PEERS[name].dtypes)}, got --dtype {options.dtype}")
    slots = options.slots or max(options.concurrency)
    setting = Setting(home=options.home, gguf=(options.gguf or package_file()).absolute(), source=options.source,
                      device=options.device, dtype=options.dtype, context=options.context, slots=slots)  # fmt: skip
    setting.weights.mkdir(parents=True, exist_ok=True)
    options.label = options.label or "peers"
    found: dict[str, Any] = {"gguf": setting.gguf.name, "runs": []}
    found["peer_versions"] = {name: PEERS[name].version(options.home) for name in options.only}
    for name in options.only:  # so that one that is not set up is told before any is measured
        PEERS[name].command(setting, 0)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that the server under test is ended too
    with Shown() as shown:
        for turn in range(options.rounds):
            for name in options.only:
                found["runs"].append({"peer": name, "round": turn, **_run(name, PEERS[name], setting, options, shown)})
                if options.json:  # after each, so that nothing is lost if a later one fails
                    write_json(options.json, found)
    return outcome_of(options, found)


def _run(name: str, peer: Peer, setting: Setting, options: argparse.Namespace, shown: Shown) -> dict[str, Any]:
    """One server from start to end."""
    shown.stage(f"{name}: starting")
    port, log = free_port(), options.home / f"{name}.log"
    command, began = peer.command(setting, port), time.monotonic()
    asked = argparse.Namespace(**vars(options) | {"model": MODEL, "label": name, "extra_body": peer.body})
    with running(command, log, peer.environment) as process:
        problem = wait_for_answer(f"http://127.0.0.1:{port}", _hello(peer), process, options.start_seconds)
        if problem:
            return {"failed": problem, "said": last_words(log)}
        start_seconds = time.monotonic() - began
        endpoint = Endpoint(f"http://127.0.0.1:{port}")
        levels = []
        for concurrency in options.concurrency:
            asked.concurrency = [concurrency]
            levels += asyncio.run(serve.measure(endpoint, asked, shown, first=concurrency * FAR_APART))
        return {"start_s": start_seconds, "memory_mib": memory_mib(process), "levels": levels}


def _hello(peer: Peer) -> dict[str, Any]:
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Say hello."}], "stream": True}
    body |= {"max_tokens": 2, "temperature": 0.0, **peer.body}
    return {key: value for key, value in body.items() if value is not None}


def outcome_of(options: argparse.Namespace, found: dict[str, Any]) -> Outcome:
    """One table of medians over the rounds, and of each rate as a part of the first server's."""
    runs, names, clients = found["runs"], options.only, options.concurrency
    notes = [f"{run['peer']} did not start: {run['failed']}: {run['said']}" for run in runs if run.get("failed")]
    notes += [f"{name}: {version}" for name, version in found["peer_versions"].items()]
    header = ["server", *(f"{what} at {n}" for what, _, _ in FIGURES for n in clients), "start s", "MiB", "errors"]
    rates = {name: [_median(runs, name, n, FIGURES[0][1]) for n in clients] for name in names}
    ratios = [[name, *map(_ratio, rates[name], rates[names[0]])] for name in names]
    groups = tuple(serve.name_of({"concurrency": n}) for n in clients)
    bars = Bars(title="Output tokens a second", x="tokens a second", groups=groups,
                rows=tuple((name, tuple(rates[name])) for name in names))  # fmt: skip
    levels = {name: _first_levels(runs, name) for name in names}
    charts: tuple[Chart, ...] = (bars, *serve.charts_of({name: one for name, one in levels.items() if one}))
    return Outcome(
        kind="peers", label=options.label, found=found, charts=charts, notes=tuple(notes), has_failed=bool(notes),
        tables=(
            Table(caption="medians over the rounds", header=header, rows=[_row(runs, name, clients) for name in names]),
            Table(caption=f"tokens a second, {names[0]} being 1", header=["server", *map(str, clients)], rows=ratios),
        ),
    )  # fmt: skip


def _ratio(rate: float | None, of: float | None) -> str:
    return f"{rate / of:.2f}" if rate and of else "-"


def _row(runs: Sequence[dict[str, Any]], name: str, clients: Sequence[int]) -> list[str]:
    good = [run for run in runs if run["peer"] == name and not run.get("failed")]
    cells = [name]
    for _, keys, form in FIGURES:
        values = [_median(runs, name, n, keys) for n in clients]
        cells += ["failed" if value is None else format(value, form) for value in values]
    for key in ("start_s", "memory_mib"):
        cells.append(f"{statistics.median(run[key] for run in good):.0f}" if good else "-")
    return [*cells, str(sum(level["errors"] for run in good for level in run["levels"]))]


def _median(runs: Sequence[dict[str, Any]], name: str, clients: int, keys: Sequence[str]) -> float | None:
    values = []
    for run in runs:
        for level in run.get("levels", ()) if run["peer"] == name else ():
            if level["concurrency"] == clients:
                value: Any = level
                for key in keys:
                    value = value[key]
                values.append(float(value))
    return statistics.median(values) if values else None


def _first_levels(runs: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return next((run["levels"] for run in runs if run["peer"] == name and not run.get("failed")), [])
