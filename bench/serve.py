"""Closed-loop load on any OpenAI-compatible chat endpoint, over streaming HTTP.

    python -m bench.serve --url http://127.0.0.1:8000 --concurrency 1 4 16 --max-tokens 128
    python -m bench.serve --url http://127.0.0.1:8000 --attack --concurrency 4
    python -m bench.serve --url http://127.0.0.1:8000 --images 1 --pixels 1024x1024 --max-tokens 16

At each level that many clients send one request after another. Output tokens are the server's own usage counts where
every answer had them, else chunks with text; the report says which. Inter-token latency is the time between two chunks
with text. With --attack, steady streams decode while one long prompt arrives, and the report compares their
inter-token latency before and while the long prompt is computed. With --images each request has so many new images, and
where the server's /metrics tell, the mean time to first token is split into fetching, decoding, encoding and the rest.
"""

import argparse
import asyncio
import itertools
import json
import os
import time
from collections.abc import Callable
from typing import Any

from bench.chat_stream import Endpoint, Reply
from bench.image_times import ImageTimes
from bench.pictures import make_picture, size_of
from bench.prompts import make_prompt
from bench.record import circumstances, percentile, table, write_json

PERCENTILES = (50, 95, 99)
STEADY_PROMPT_TOKENS = 64


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table, write JSON; 1 if any request failed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.duration and options.requests:
        parser.error("--requests and --duration exclude each other")
    endpoint = Endpoint(options.url, api_key=options.api_key)
    options.model = options.model or endpoint.first_model()
    levels = asyncio.run((_attacks if options.attack else _levels)(endpoint, options))
    kept = {name: value for name, value in vars(options).items() if name not in ("api_key", "json")}
    report = {"label": options.label, **circumstances(), "options": kept, "levels": levels}
    print((_attack_table if options.attack else _level_table)(options.label, levels))
    if options.json:
        write_json(options.json, report)
    return 1 if any(level["errors"] for level in levels) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000", help="base URL, with or without /v1")
    add("--model", default="", help="default: the first the server lists")
    add("--api-key", default=os.environ.get("BENCH_API_KEY", ""), help="default: $BENCH_API_KEY")
    add("--label", default="server", help="name in the report")
    add("--concurrency", type=int, nargs="+", default=[1, 4, 16], metavar="N")
    add("--requests", type=int, default=0, help="of each level; default: 4 for each client")
    add("--duration", type=float, default=0.0, help="seconds in which requests are started, instead of --requests")
    add("--warmup", type=int, default=2, help="requests before a level, not counted")
    add("--prompt-tokens", type=int, default=64, help="about, counted in words")
    add("--shared-prefix", type=int, default=0, help="tokens that all prompts begin with")
    add("--images", type=int, default=0, metavar="N", help="in each request, all different")
    add("--pixels", type=size_of, default=(1024, 1024), metavar="WxH", help="of each image")
    add("--max-tokens", type=int, default=128)
    add("--temperature", type=float, default=0.0)
    add("--ignore-eos", action="store_true", help="send ignore_eos, which not every server accepts")
    add("--extra-body", type=json.loads, default={}, metavar="JSON", help="merged in; a null removes a field")
    add("--seed", type=int, default=0, help="other prompts, so that an earlier run's cached prefixes are not hit")
    add("--timeout", type=float, default=600.0, help="seconds a request may take")
    add("--attack", action="store_true", help="see above; --concurrency is the number of steady streams")
    add("--attack-tokens", type=int, default=6000, help="length of the long prompt")
    add("--attack-repeats", type=int, default=3, help="long prompts sent, one after another")
    add("--attack-pause", type=float, default=5.0, help="seconds of quiet before each, which are the comparison")
    add("--json", metavar="FILE", help="write the report there")
    return parser


def request_body(
    options: argparse.Namespace, prompt: str, max_tokens: int, images: list[str] | None = None
) -> dict[str, Any]:
    """One request, about images at these addresses if there are any."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in images or ()]
    body = {
        "model": options.model,
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}] if parts else prompt}],
        "max_tokens": max_tokens,
        "temperature": options.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"ignore_eos": True} if options.ignore_eos else {}),
        **options.extra_body,
    }
    return {name: value for name, value in body.items() if value is not None}


async def _levels(endpoint: Endpoint, options: argparse.Namespace) -> list[dict[str, Any]]:
    numbers = itertools.count()

    async def send() -> Reply:
        number = next(numbers)
        prompt = make_prompt(
            number, tokens=options.prompt_tokens, shared_prefix=options.shared_prefix, seed=options.seed
        )
        images = [
            await asyncio.to_thread(make_picture, number * options.images + image, options.pixels, seed=options.seed)
            for image in range(options.images)
        ]
        body = request_body(options, prompt, options.max_tokens, images)
        return await endpoint.chat(body, timeout=options.timeout)

    results = []
    for concurrency in options.concurrency:
        for _ in range(options.warmup):
            await send()
        times = ImageTimes(endpoint) if options.images else None
        results.append(await _level(send, concurrency, options))
        if times is not None:
            results[-1]["ttft_split_ms"] = times.split(results[-1])
    return results


async def _level(send: Callable[[], Any], concurrency: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run one level: clients that each send one request after another."""
    replies: list[Reply] = []
    left = options.requests or 4 * concurrency
    began, cpu = time.perf_counter(), time.process_time()

    async def client() -> None:
        nonlocal left
        while time.perf_counter() - began < options.duration if options.duration else left > 0:
            left -= 1
            replies.append(await send())

    await asyncio.gather(*(client() for _ in range(concurrency)))
    wall = max(reply.finished for reply in replies) - began
    return {"concurrency": concurrency, **summarise(replies, wall), "client_cpu": (time.process_time() - cpu) / wall}


def summarise(replies: list[Reply], wall: float) -> dict[str, Any]:
    """The figures of one level."""
    good = [reply for reply in replies if reply.error is None and reply.times]
    failed = [reply.error or "an answer without text" for reply in replies if reply.error or not reply.times]
    by_usage = all(reply.usage and reply.usage.completion_tokens for reply in good)
    tokens = sum(reply.output_tokens if by_usage else len(reply.times) for reply in good)
    chunks = sum(len(reply.times) for reply in good)
    prompts = [reply.usage.prompt_tokens for reply in good if reply.usage]
    count = max(1, len(good))
    return {
        "wall_s": wall,
        "requests": len(replies),
        "errors": len(failed),
        "error_messages": sorted(set(failed))[:5],
        "output_tokens": tokens,
        "tokens_counted_by": "usage" if by_usage and good else "chunks",
        "output_tokens_per_s": tokens / wall,
        "requests_per_s": len(good) / wall,
        "mean_output_tokens": tokens / count,
        "mean_prompt_tokens": sum(prompts) / len(prompts) if prompts else None,
        "tokens_per_chunk": tokens / max(1, chunks),
        "finished_by_length": sum(reply.finish_reason == "length" for reply in good),
        "ttft_ms": _spread([reply.ttft for reply in good]),
        "ttft_mean_ms": 1000 * sum(reply.ttft for reply in good) / count,
        "itl_ms": _spread([gap for reply in good for gap in reply.gaps]),
        "first_answer": "".join(good[0].texts)[:200] if good else "",
    }


def _spread(seconds: list[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    return {f"p{percent}": 1000 * percentile(seconds, percent) for percent in PERCENTILES} | {
        "max": 1000 * max(seconds, default=0.0)
    }


def _level_table(label: str, levels: list[dict[str, Any]]) -> str:
    header = ["clients", "tok/s", "req/s", "tokens", "by", "TTFT p50", "p95", "p99 ms", "ITL p50", "p95", "p99 ms"]
    rows = []
    for level in levels:
        spreads = [f"{level[name][f'p{p}']:.1f}" for name in ("ttft_ms", "itl_ms") for p in PERCENTILES]
        counts = [str(level["output_tokens"]), level["tokens_counted_by"]]
        rates = [f"{level['output_tokens_per_s']:.1f}", f"{level['requests_per_s']:.2f}"]
        rows.append([str(level["concurrency"]), *rates, *counts, *spreads, str(level["errors"])])
    text = f"{label}\n{table([*header, 'errors'], rows)}"
    if any(level.get("ttft_split_ms") for level in levels):
        text += "\n" + _split_table(levels)
    messages = sorted({message for level in levels for message in level["error_messages"]})
    return "\n".join([text, *(f"error: {message}" for message in messages)])


def _split_table(levels: list[dict[str, Any]]) -> str:
    parts = list(next(level["ttft_split_ms"] for level in levels if level["ttft_split_ms"]))
    rows = [
        [str(level["concurrency"]), f"{level['ttft_mean_ms']:.1f}"]
        + [f"{(level['ttft_split_ms'] or {}).get(part, 0):.1f}" for part in parts]
        for level in levels
    ]
    return table(["clients", "mean TTFT ms", *parts], rows)


ATTACK_TOKENS = 32
"""Long enough an answer that some of it is text, whose first piece ends the attack."""


async def _attacks(endpoint: Endpoint, options: argparse.Namespace) -> list[dict[str, Any]]:
    return [await _attack(endpoint, options, streams) for streams in options.concurrency]


async def _attack(endpoint: Endpoint, options: argparse.Namespace, streams: int) -> dict[str, Any]:
    """Steady streams; after each pause a long prompt. Gaps between chunks are judged by when they end."""
    steady: list[Reply] = []
    numbers = itertools.count()

    async def client() -> None:
        while True:
            prompt = make_prompt(next(numbers), tokens=STEADY_PROMPT_TOKENS, seed=options.seed)
            reply = Reply(0.0)
            steady.append(reply)
            body = request_body(options, prompt, max(options.max_tokens, 1024))
            await endpoint.chat(body, timeout=options.timeout, reply=reply)
            if reply.error:
                return

    clients = [asyncio.create_task(client()) for _ in range(streams)]
    quiet, busy, attackers = [], [], []
    for number in range(options.attack_repeats):
        while len(steady) < streams or not all(reply.times or reply.error for reply in steady):
            await asyncio.sleep(0.05)
        began = time.perf_counter()
        await asyncio.sleep(options.attack_pause)
        prompt = make_prompt(number, tokens=options.attack_tokens, seed=options.seed + 1)
        attackers.append(await endpoint.chat(request_body(options, prompt, ATTACK_TOKENS), timeout=options.timeout))
        start = attackers[-1].started
        end = attackers[-1].times[0] if attackers[-1].times else attackers[-1].finished
        quiet += gaps_between(steady, began, start)
        busy += gaps_between(steady, start, end)
    summary = _attack_summary(steady, attackers, quiet, busy)
    for task in clients:
        task.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    return {"concurrency": streams, **summary}


def gaps_between(replies: list[Reply], start: float, end: float) -> list[float]:
    """The gaps between chunks that end in a span of time."""
    return [
        gap for reply in replies for gap, time in zip(reply.gaps, reply.times[1:], strict=True) if start < time <= end
    ]


def _attack_summary(
    steady: list[Reply], attackers: list[Reply], quiet: list[float], busy: list[float]
) -> dict[str, Any]:
    failed = [reply.error for reply in [*steady, *attackers] if reply.error]
    before, during = _spread(quiet), _spread(busy)
    return {
        "attacks": len(attackers),
        "attack_prompt_tokens": [reply.usage.prompt_tokens for reply in attackers if reply.usage],
        "attack_ttft_ms": [1000 * reply.ttft for reply in attackers if reply.times],
        "itl_before_ms": before,
        "itl_during_ms": during,
        "itl_p99_ratio": during["p99"] / before["p99"] if before["p99"] else None,
        "gaps_before": len(quiet),
        "gaps_during": len(busy),
        "errors": len(failed),
        "error_messages": sorted(set(failed))[:5],
    }


def _attack_table(label: str, levels: list[dict[str, Any]]) -> str:
    header = [
        "streams",
        "ITL p50 before",
        "during",
        "p99 before",
        "during ms",
        "p99 ratio",
        "attacker TTFT ms",
        "errors",
    ]
    rows = []
    for level in levels:
        before, during, ratio = level["itl_before_ms"], level["itl_during_ms"], level["itl_p99_ratio"]
        spreads = [f"{spread[name]:.1f}" for name in ("p50", "p99") for spread in (before, during)]
        ttft = "/".join(f"{value:.0f}" for value in level["attack_ttft_ms"])
        rows.append([str(level["concurrency"]), *spreads, f"{ratio or 0:.2f}", ttft, str(level["errors"])])
    messages = sorted({message for level in levels for message in level["error_messages"]})
    return "\n".join([f"{label}\n{table(header, rows)}", *(f"error: {message}" for message in messages)])


if __name__ == "__main__":
    raise SystemExit(main())
