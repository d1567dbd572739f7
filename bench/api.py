"""How many tokens a second the API process can stream, with a scripted engine behind it that costs next to nothing.

    python -m bench.api --tokenizer DIR [--streams 64] [--seconds 10]

Real HTTP over loopback: the server, the fake engine and the client are three processes. The number that counts is
tokens per second of the server's own CPU time, since on a small machine the client and the engine take their share of
the cores.
"""

import argparse
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from server.benchmarks.record import circumstances, write_json

ROOT = Path(__file__).resolve().parent.parent
SERVER = "tests.server.serve_fake"


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--step-ms", type=float, default=5.0, help="time of one engine step, a token for each stream")
    parser.add_argument("--tokenizer", required=True, help="directory with the tokenizer to detokenise with")
    parser.add_argument("--json", metavar="FILE", help="write the result here as well, with what it was measured on")
    options = parser.parse_args()
    with running_server(options.tokenizer, options.step_ms / 1000) as (port, process):
        result = measure(port, process, options.streams, options.seconds)
    print(json.dumps({"streams": options.streams, "step_ms": options.step_ms, **result}))
    if options.json:
        write_json(options.json, {**circumstances(), "streams": options.streams, "step_ms": options.step_ms, **result})


@contextmanager
def running_server(tokenizer: str, step_seconds: float) -> Iterator[tuple[int, psutil.Process]]:
    """A server with the fake engine, as processes of their own; its port and process."""
    script = {
        "model_dir": tokenizer,
        "token_ids": list(range(1000, 1400)),
        "step_seconds": step_seconds,
        "context": 10_000_000,
    }
    with tempfile.TemporaryDirectory() as directory:
        port_file = Path(directory) / "port"
        environment = {**os.environ, "FAKE_ENGINE": json.dumps(script)}
        process = subprocess.Popen([sys.executable, "-m", SERVER, str(port_file)], cwd=ROOT, env=environment)
        try:
            while not port_file.exists():
                time.sleep(0.05)
            port = int(port_file.read_text())
            while httpx.get(f"http://127.0.0.1:{port}/health").status_code != 200:
                time.sleep(0.05)
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(20)


def measure(port: int, process: psutil.Process, streams: int, seconds: float) -> dict[str, float]:
    """Open the streams, let them run, and count."""
    selector = selectors.DefaultSelector()
    body = json.dumps(
        {"messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 1_000_000}
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    for _ in range(streams):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(head + body)
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ)
    _read(selector, 2.0)  # all are running
    tokens, cpu, began = _generated(port), sum(process.cpu_times()[:2]), time.monotonic()
    events = _read(selector, seconds)
    tokens, cpu, wall = (
        _generated(port) - tokens,
        sum(process.cpu_times()[:2]) - cpu,
        time.monotonic() - began,
    )
    for key in list(selector.get_map().values()):
        key.fileobj.close()  # type: ignore[union-attr]
    return {
        "tokens_per_second": round(tokens / wall),
        "tokens_per_server_cpu_second": round(tokens / cpu),
        "server_cpu_seconds_per_10k_tokens": round(10_000 * cpu / tokens, 3),
        "events_per_second": round(events / wall),
        "server_cpu": round(cpu / wall, 2),
    }


def _read(selector: selectors.BaseSelector, seconds: float) -> int:
    """Read everything for a while; how many events came."""
    events = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for key, _ in selector.select(0.1):
            data = key.fileobj.recv(1 << 20)  # type: ignore[union-attr]
            if not data:
                raise SystemExit("a stream ended early")
            events += data.count(b"data: ")
    return events


def _generated(port: int) -> int:
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("headrace_generation_tokens_total")]
    return int(float(lines[0].split()[-1]))


if __name__ == "__main__":
    main()
