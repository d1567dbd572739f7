"""What a hop through Ray Serve costs a request: `.venv-ray/bin/python -m bench.replicas`, after `make ray`.

Two replicas of a model that costs next to nothing, as `deploy/ray_app.py` makes them. The same requests go to one
replica's server by its own socket and through Ray's proxy, in turn: alone, and several at a time.
"""

import argparse
import asyncio
import itertools
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from server.benchmarks.record import circumstances, table, write_json
from tests.places import ROOT
from tests.serving import write_models

MODEL = "random://llama?hidden_size=64&num_hidden_layers=2&vocab_size=300&intermediate_size=128&num_attention_heads=4"
TOKENS = 64
AT_ONCE = (1, 8)
MakeClient = Callable[[], httpx.AsyncClient]


async def ask(client: httpx.AsyncClient) -> tuple[float, float]:
    """Seconds until the first byte of a stream's body, and until its last."""
    body = {
        "messages": [{"role": "user", "content": "hi"}], "ignore_eos": True, "max_tokens": TOKENS, "stream": True,
    }  # fmt: skip
    began, first = time.perf_counter(), 0.0
    async with client.stream("POST", "/v1/chat/completions", json=body) as stream:
        stream.raise_for_status()
        async for _ in stream.aiter_raw():
            first = first or time.perf_counter() - began
    return first, time.perf_counter() - began


async def measure(make: MakeClient, requests: int, at_once: int) -> dict[str, float]:
    """Medians in milliseconds, and answers a second."""
    async with make() as client:
        await ask(client)
        began, answers = time.perf_counter(), []
        for _ in range(requests // at_once):
            answers += await asyncio.gather(*(ask(client) for _ in range(at_once)))
        seconds = time.perf_counter() - began
    firsts, wholes = zip(*answers, strict=True)
    return {
        "first_byte_ms": 1000 * statistics.median(firsts), "whole_ms": 1000 * statistics.median(wholes),
        "answers_per_second": len(answers) / seconds,
    }  # fmt: skip


def roads(url: str) -> dict[str, MakeClient]:
    """How clients reach a server: by its own socket, and through Ray's proxy."""
    servers = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    path = next(words[words.index("--unix-socket") + 1] for words in servers if "--unix-socket" in words)
    return {
        "direct": lambda: httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=path), base_url="http://localhost", timeout=60
        ),
        "through Ray": lambda: httpx.AsyncClient(base_url=url, timeout=60),
    }


def deploy(models: Path) -> str:
    """Two replicas on this machine; the address of Ray's proxy."""
    import ray
    from ray import serve

    from deploy.ray_app import app

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ["PYTHONPATH"] = str(ROOT)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False,
             runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})  # fmt: skip
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    options = f"--models {models} --memory 64MiB --threads 1 --no-playground"
    serve.run(app({"replicas": "2", "options": options, "cpus": "0.5"}), name="headrace")
    return f"http://127.0.0.1:{port}"


def main() -> int:
    """Measure both roads in turn, print a table; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        url = deploy(write_models(Path(work), {"name": "tiny", "source": MODEL, "dtype": "float32"}))
        for at_once, count in itertools.product(AT_ONCE, range(options.rounds)):
            for road, make in roads(url).items():
                one = asyncio.run(measure(make, options.requests, at_once))
                found.append({"road": road, "at_once": at_once, "round": count, **one})
    if options.json:
        write_json(options.json, {**circumstances(), "found": found})
    rows = [[str(one[key]) for key in ("road", "at_once", "round")]
            + [f"{one[key]:.1f}" for key in ("first_byte_ms", "whole_ms", "answers_per_second")]
            for one in found]  # fmt: skip
    print(table(["road", "at once", "round", "first byte, ms", "whole, ms", "answers/s"], rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
