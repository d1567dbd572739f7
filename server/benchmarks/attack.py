"""What a long prompt does to streams that are under way: `headrace bench serve --attack`."""

import argparse
import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import Any

from server.benchmarks.chat_stream import Endpoint, Reply
from server.benchmarks.figures import spread
from server.benchmarks.outcome import Outcome, Table
from server.benchmarks.progress import Shown
from server.benchmarks.prompts import make_prompt
from server.benchmarks.request import body_of
from server.benchmarks.workload import Asked

STEADY_PROMPT_TOKENS = 64
LEAST_STEADY_TOKENS = 1024
ATTACK_TOKENS = 32
"""Long enough an answer that some of it is text, whose first piece ends the attack."""
POLL_SECONDS = 0.05


async def attacks(endpoint: Endpoint, options: argparse.Namespace, shown: Shown) -> Outcome:
    """One row for each number of steady streams."""
    levels = []
    for streams in options.concurrency:
        shown.stage(f"{options.label}: long prompts beside {streams} streams", options.attack_repeats)
        levels.append(await _attack(endpoint, options, streams, shown))
    messages = sorted({message for level in levels for message in level["error_messages"]})
    return Outcome(
        kind="serve", label=options.label, found={"levels": levels}, tables=(_table(options.label, levels),),
        notes=tuple(f"error: {message}" for message in messages), has_failed=any(level["errors"] for level in levels),
    )  # fmt: skip


async def _attack(endpoint: Endpoint, options: argparse.Namespace, streams: int, shown: Shown) -> dict[str, Any]:
    """Steady streams; after each pause a long prompt. Gaps between chunks are judged by when they end."""
    steady: list[Reply] = []
    numbers = itertools.count()

    async def client() -> None:
        while True:
            prompt = make_prompt(next(numbers), tokens=STEADY_PROMPT_TOKENS, seed=options.seed)
            reply = Reply(0.0)
            steady.append(reply)
            body = body_of(options, _asked(prompt, max(options.max_tokens.high, LEAST_STEADY_TOKENS)))
            await endpoint.chat(body, timeout=options.timeout, reply=reply)
            if reply.error:
                return

    clients = [asyncio.create_task(client()) for _ in range(streams)]
    quiet: list[float] = []
    busy: list[float] = []
    attackers: list[Reply] = []
    for number in range(options.attack_repeats):
        while len(steady) < streams or not all(reply.times or reply.error for reply in steady):
            await asyncio.sleep(POLL_SECONDS)
        began = time.perf_counter()
        await asyncio.sleep(options.attack_pause)
        prompt = make_prompt(number, tokens=options.attack_tokens, seed=options.seed + 1)
        body = body_of(options, _asked(prompt, ATTACK_TOKENS))
        attackers.append(await endpoint.chat(body, timeout=options.timeout))
        start = attackers[-1].started
        end = attackers[-1].times[0] if attackers[-1].times else attackers[-1].finished
        quiet += gaps_between(steady, began, start)
        busy += gaps_between(steady, start, end)
        shown.advance()
    summary = _summary(steady, attackers, quiet, busy)
    for task in clients:
        task.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    return {"concurrency": streams, **summary}


def _asked(prompt: str, max_tokens: int) -> Asked:
    return Asked([{"role": "user", "content": prompt}], max_tokens)


def gaps_between(replies: Sequence[Reply], start: float, end: float) -> list[float]:
    """The gaps between chunks that end in a span of time."""
    return [
        gap for reply in replies for gap, time in zip(reply.gaps, reply.times[1:], strict=True) if start < time <= end
    ]


def _summary(
    steady: Sequence[Reply], attackers: Sequence[Reply], quiet: Sequence[float], busy: Sequence[float]
) -> dict[str, Any]:
    failed = [reply.error for reply in [*steady, *attackers] if reply.error]
    before, during = spread(quiet), spread(busy)
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


def _table(label: str, levels: Sequence[dict[str, Any]]) -> Table:
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
        spreads = [f"{found[name]:.1f}" for name in ("p50", "p99") for found in (before, during)]
        ttft = "/".join(f"{value:.0f}" for value in level["attack_ttft_ms"])
        rows.append([str(level["concurrency"]), *spreads, f"{ratio or 0:.2f}", ttft, str(level["errors"])])
    return Table(caption=label, header=header, rows=rows)
