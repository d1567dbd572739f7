"""Headrace and its peers on one machine, one after another: same weights, same prompts, greedy.

    python -m bench.peers [--only headrace llama_cpp ...] [--gguf FILE] [--home DIR] [--rounds 3]

Starts each server, waits for its first answer, loads it with bench.serve, and ends it. bench/peers/README.md says how
to set the peers up. Let nothing else run meanwhile.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from bench.chat_stream import Endpoint
from bench.peers.servers import MODEL, PEERS, Peer, Setting
from bench.peers.weights import package_file
from bench.record import ROOT, circumstances, table, write_json

DEFAULT_HOME = Path(os.environ.get("HEADRACE_PEERS", Path.home() / ".cache" / "headrace" / "peers"))


def main() -> int:
    """Run all, print one table, write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", nargs="+", choices=PEERS, metavar="NAME", help=f"of {', '.join(PEERS)}")
    add(
        "--gguf",
        type=Path,
        metavar="FILE",
        help="a model's own file, for the servers that read it; SmolLM2's by default",
    )
    add(
        "--home",
        type=Path,
        default=DEFAULT_HOME,
        help="environments and weights; default: $HEADRACE_PEERS, %(default)s",
    )
    add("--concurrency", type=int, nargs="+", default=[1, 4, 16], metavar="N")
    add("--max-tokens", type=int, default=128)
    add("--prompt-tokens", type=int, default=64)
    add("--requests-per-client", type=int, default=3)
    add("--rounds", type=int, default=1, help="repeat everything, servers in turn; the table shows medians")
    add("--start-seconds", type=float, default=300, help="how long a server may take to its first answer")
    add("--json", default="", metavar="FILE", help="default: bench/results/DATE-peers.json")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that the server under test is ended too
    options.only = options.only or [name for name, peer in PEERS.items() if peer.reads_gguf or not options.gguf]
    options.setting = Setting(options.home, (options.gguf or package_file()).absolute())
    options.setting.weights.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {**circumstances(), "gguf": options.setting.gguf.name, "versions": {}, "runs": []}
    for name in options.only:
        report["versions"][name] = PEERS[name].version(options.home)
    target = options.json or str(ROOT / "bench" / "results" / f"{report['date'][:10]}-peers.json")
    for turn in range(options.rounds):
        for name in options.only:
            print(f"round {turn + 1}: {name}", flush=True)
            report["runs"].append({"peer": name, "round": turn, **_run(name, PEERS[name], turn, options)})
            write_json(target, report)  # after each, so that nothing is lost if a later one fails
    print(_table(options.only, options.concurrency, report["runs"]))
    print(f"written to {target}")
    return 1 if any(run.get("failed") for run in report["runs"]) else 0


def _run(name: str, peer: Peer, turn: int, options: argparse.Namespace) -> dict[str, Any]:
    """One server from start to end."""
    with _free_port() as port:
        command = peer.command(options.setting, port)
    log = options.home / f"{name}.log"
    began = time.monotonic()
    with _running(command, {**os.environ, **peer.environment}, log) as process:
        url = f"http://127.0.0.1:{port}"
        problem = _wait_for_answer(url, peer, process, options.start_seconds)
        if problem:
            print(f"{name} did not start ({problem}); its log is {log}", file=sys.stderr)
            return {"failed": problem}
        start_seconds = time.monotonic() - began
        levels = []
        for concurrency in options.concurrency:
            levels += _load(name, url, peer, concurrency, turn, options)
        return {"start_s": start_seconds, "memory_mib": _memory_mib(process), "levels": levels}


def _load(
    name: str, url: str, peer: Peer, concurrency: int, turn: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Run bench.serve as a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "report.json"
        command = [
            sys.executable, "-m", "bench.serve", "--url", url, "--model", MODEL, "--label", name, "--json", str(file),
            "--concurrency", str(concurrency), "--requests", str(concurrency * options.requests_per_client),
            "--max-tokens", str(options.max_tokens), "--prompt-tokens", str(options.prompt_tokens),
            "--seed", str(turn * 1000 + concurrency), "--extra-body", json.dumps(peer.body),
        ]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=False)
        levels: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["levels"] if file.exists() else []
        return levels


def _wait_for_answer(url: str, peer: Peer, process: "subprocess.Popen[bytes]", seconds: float) -> str:
    """Ask until an answer comes; what went wrong if none does."""
    say: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Say hello."}], "stream": True}
    say.update({"max_tokens": 2, "temperature": 0.0, **peer.body})
    body = {key: value for key, value in say.items() if value is not None}
    deadline = time.monotonic() + seconds
    problem = "no answer"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return f"it ended with status {process.returncode}"
        reply = asyncio.run(Endpoint(url).chat(body, timeout=60))
        if reply.error is None and reply.times:
            return ""
        problem = reply.error or "an answer without text"
        time.sleep(0.5)
    return problem


@contextlib.contextmanager
def _free_port() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


@contextlib.contextmanager
def _running(command: list[str], environment: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A server in a session of its own, ended with all its children."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        for number, patience in ((signal.SIGINT, 20), (signal.SIGKILL, 5)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)


def _memory_mib(process: "subprocess.Popen[bytes]") -> int:
    """Memory of the server and its children, shared pages divided among their users."""
    total = 0
    for one in [parent := psutil.Process(process.pid), *parent.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += one.memory_full_info().pss
    return total >> 20


def _table(names: list[str], concurrency: list[int], runs: list[dict[str, Any]]) -> str:
    """A row for each server: medians over the rounds."""
    header = ["server", *(f"tok/s at {n}" for n in concurrency), *(f"TTFT ms at {n}" for n in concurrency)]
    header += [*(f"ITL p99 ms at {n}" for n in concurrency), "start s", "MiB", "errors"]
    rows = []
    for name in names:
        good = [run for run in runs if run["peer"] == name and not run.get("failed")]
        levels = [level for run in good for level in run["levels"]]
        cells = [name]
        for keys, form in ((("output_tokens_per_s",), ".0f"), (("ttft_ms", "p50"), ".0f"), (("itl_ms", "p99"), ".1f")):
            for n in concurrency:
                values = [_pick(level, keys) for level in levels if level["concurrency"] == n]
                cells.append(format(statistics.median(values), form) if values else "failed")
        for key in ("start_s", "memory_mib"):
            cells.append(f"{statistics.median(run[key] for run in good):.0f}" if good else "-")
        rows.append([*cells, str(sum(level["errors"] for level in levels))])
    return table(header, rows)


def _pick(level: dict[str, Any], keys: tuple[str, ...]) -> float:
    value: Any = level
    for key in keys:
        value = value[key]
    return float(value)


if __name__ == "__main__":
    raise SystemExit(main())
