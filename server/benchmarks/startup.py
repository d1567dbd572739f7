"""How long a server takes from its start to its first answer, and what memory it has then: `headrace bench startup`.

Each repeat is a new `headrace serve` on a free port. What the operating system keeps of files stays, and so do
converted weights and built kernels: a first start after an installation takes longer.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from server.benchmarks.amounts import count, positive
from server.benchmarks.charts import Bars
from server.benchmarks.chat_stream import Endpoint
from server.benchmarks.engine_run import MeasureError
from server.benchmarks.outcome import Outcome, Table
from server.benchmarks.progress import Shown
from server.benchmarks.server_process import free_port, last_words, memory_mib, running, wait_for_answer

HELP = "from a server's start to its first answer, and its memory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    parser.add_argument("--repeats", type=count, default=3, metavar="N", help="starts [3]")
    parser.add_argument("--start-seconds", type=positive, default=600, help="a start may take [600]")
    parser.add_argument(
        "serve", nargs=argparse.REMAINDER, metavar="...", help="arguments of `headrace serve`: a model, options"
    )


def run(options: argparse.Namespace) -> Outcome:
    """Measure. Raises `MeasureError`."""
    arguments = [word for word in options.serve if word != "--"]
    options.label = options.label or "headrace"
    starts = []
    with Shown() as shown:
        shown.stage("starting servers", options.repeats)
        for _ in range(options.repeats):
            starts.append(_start(arguments, options.start_seconds))
            shown.advance()
    middle = {name: statistics.median(start[name] for start in starts) for name in starts[0]}
    seconds = [start["first_answer_s"] for start in starts]
    header = ["starts", "listening s", "first answer s", "least", "most", "next answer ms", "MiB"]
    row = [
        str(len(starts)), f"{middle['listening_s']:.2f}", f"{middle['first_answer_s']:.2f}", f"{min(seconds):.2f}",
        f"{max(seconds):.2f}", f"{1000 * middle['next_answer_s']:.0f}", f"{middle['memory_mib']:.0f}",
    ]  # fmt: skip
    bars = Bars(
        title="Seconds from the start", x="seconds, medians", groups=("it listens", "its first answer"),
        rows=((options.label, (middle["listening_s"], middle["first_answer_s"])),),
    )  # fmt: skip
    return Outcome(
        kind="startup", label=options.label, found={"serve": arguments, "starts": starts, "median": middle},
        tables=(Table(caption=options.label, header=header, rows=[row]),), charts=(bars,),
    )  # fmt: skip


def _start(arguments: list[str], seconds: float) -> dict[str, float]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    resolved = [str(Path(word).resolve()) if Path(word).exists() else word for word in arguments]
    command = [sys.executable, "-m", "server.commands.cli", "serve", *resolved, "--port", str(port)]
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 2, "stream": True}
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        began = time.monotonic()
        with running(command, log) as process:
            endpoint = Endpoint(url)
            while not endpoint.is_listening():
                if process.poll() is not None or time.monotonic() - began > seconds:
                    raise MeasureError(f"the server does not listen: {last_words(log)}")
                time.sleep(0.02)
            listening = time.monotonic() - began
            problem = wait_for_answer(url, body, process, seconds)
            if problem:
                raise MeasureError(f"the server does not answer: {problem}: {last_words(log)}")
            first = time.monotonic()
            wait_for_answer(url, body, process, seconds)
            return {
                "listening_s": listening, "first_answer_s": first - began,
                "next_answer_s": time.monotonic() - first, "memory_mib": float(memory_mib(process)),
            }  # fmt: skip
