"""A whole server with random weights under load, over HTTP: `python -m bench.gpu.traffic`.

Seconds from its start to its first answer; then tokens a second, TTFT and inter-token latency of clients that ask again
at once, and of streams beside a long prompt; then the start of a server that records its steps later. With `--images N`
each request of the clients has so many, of which the time to first token is split into what it was spent on, and what
would follow is left out. With `--soak SECONDS` requests arrive at random for so long instead, and neither the words of
a greedy answer nor the memory that the GPU has left may have changed at the end.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.gpu.server import ask_for, measure_start, running

START_SECONDS = 180.0
QUESTION = "Say what a mill needs to run by a river."
LEAK = 64 * 2**20
"""Bytes of the GPU's memory that may be missing at the end."""


def load(port: int, *options: str) -> dict[str, Any]:
    """What `headrace bench serve` measures. Its table goes where ours does."""
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "found.json"
        command = [sys.executable, "-m", "server.commands.cli", "bench", "serve", "--url", f"http://127.0.0.1:{port}"]
        subprocess.run([*command, "--ignore-eos", "--json", str(path), *options], check=True)
        return dict(json.loads(path.read_text(encoding="utf-8")))


def traffic(port: int, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Clients by number, then a long prompt beside eight streams; each as it is measured."""
    sizes = ["--prompt-tokens", str(options.prompt_tokens), "--max-tokens", str(options.max_tokens)]
    if options.images:
        sizes += ["--images", str(options.images), "--pixels", options.pixels]
    clients = [str(number) for number in options.clients]
    yield {"clients": load(port, "--concurrency", *clients, "--duration", str(options.duration), *sizes)}
    if options.long_prompt and not options.images:
        attack = ["--attack", "--attack-tokens", str(options.long_prompt), "--max-tokens", "512"]
        yield {"long prompt": load(port, "--concurrency", "8", *attack)}


def soak(port: int, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What was measured; then raises RuntimeError where the end is not as the beginning was."""
    load(port, "--concurrency", "8", "--requests", "16", "--max-tokens", "32")  # caches fill
    before, free = ask_for(port, QUESTION, 32), free_bytes()
    found = load(
        port, "--rate", str(options.rate), "--duration", str(options.soak),
        "--prompt-tokens", f"16:{options.prompt_tokens}", "--max-tokens", f"1:{options.max_tokens}",
    )  # fmt: skip
    after, lost = ask_for(port, QUESTION, 32), free - free_bytes()
    yield {"soak": found, "lost bytes": lost}
    if before is None or after != before:
        raise RuntimeError(f"a greedy answer is another after the load: {before!r}, {after!r}")
    if lost > LEAK:
        raise RuntimeError(f"{lost / 2**20:.0f} MiB of the GPU's memory are gone")


def free_bytes() -> int:
    """Of the first GPU; 0 where there is none."""
    import torch

    return torch.cuda.mem_get_info(0)[0] if torch.cuda.is_available() else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.traffic", description=__doc__)
    parser.add_argument("--model", default="Llama-3.1-8B", help="of random:// [%(default)s]")
    parser.add_argument("--device", default="cuda", help="[%(default)s]")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64], help="[1 8 64]")
    parser.add_argument("--duration", type=float, default=10.0, help="seconds of each number [%(default)s]")
    parser.add_argument("--prompt-tokens", type=int, default=400, help="[%(default)s]")
    parser.add_argument("--max-tokens", type=int, default=256, help="[%(default)s]")
    parser.add_argument("--long-prompt", type=int, default=16_000, help="tokens; 0 leaves it out [%(default)s]")
    parser.add_argument("--images", type=int, default=0, help="in each request of the clients [%(default)s]")
    parser.add_argument("--pixels", default="1000x1000", help="of each image [%(default)s]")
    parser.add_argument("--soak", type=float, help="seconds; instead of all this")
    parser.add_argument("--rate", type=float, default=8.0, help="requests a second of the soak [%(default)s]")
    parser.add_argument("--json", type=Path, help="where the figures go")
    return parser.parse_args(arguments)


def keep(found: dict[str, Any], path: Path | None) -> None:
    """Write what was found so far."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """0 if all went well."""
    options = parse(arguments)
    try:
        with running(options.model, options.device, START_SECONDS) as (port, start):
            print(f"first answer after {start['first_answer_seconds']:.1f} s", flush=True)
            found = {"model": options.model, "start": start}
            keep(found, options.json)
            for part in (soak if options.soak else traffic)(port, options):
                found |= part
                keep(found, options.json)
        if not options.soak and not options.images:
            lazy = found["lazy start"] = measure_start(options.model, options.device, START_SECONDS, graphs="lazy")
            print(f"first answer after {lazy['first_answer_seconds']:.1f} s with graphs: lazy", flush=True)
            keep(found, options.json)
    except (RuntimeError, subprocess.CalledProcessError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
