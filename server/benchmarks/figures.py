"""From replies to figures: rates, percentiles, what share kept its limits, and what several repeats come to."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from server.benchmarks.chat_stream import Reply
from server.benchmarks.record import percentile

PERCENTILES = (50, 95, 99)
CURVE = tuple(range(0, 100))
"""Percents of the inter-token curve; beyond the 99th it would be a single gap."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What an answer must keep to count as good, in milliseconds; None is no limit."""

    ttft_ms: float | None = None
    itl_ms: float | None = None
    """Of the mean time between its chunks."""

    @property
    def is_set(self) -> bool:
        """Whether there is any limit."""
        return self.ttft_ms is not None or self.itl_ms is not None

    def is_kept(self, reply: Reply) -> bool:
        """Whether an answer came in time; one that failed did not."""
        if reply.error is not None or not reply.times:
            return False
        gaps = reply.gaps
        mean = 1000 * sum(gaps) / len(gaps) if gaps else 0.0
        return (self.ttft_ms is None or 1000 * reply.ttft <= self.ttft_ms) and (
            self.itl_ms is None or mean <= self.itl_ms
        )


def summarise(replies: Sequence[Reply], wall: float, goal: Goal | None = None) -> dict[str, Any]:
    """The figures of one run over `wall` seconds."""
    good = [reply for reply in replies if reply.error is None and reply.times]
    failed = [reply.error or "an answer without text" for reply in replies if reply.error or not reply.times]
    by_usage = all(reply.usage and reply.usage.completion_tokens for reply in good)
    tokens = sum(reply.output_tokens if by_usage else len(reply.times) for reply in good)
    chunks = sum(len(reply.times) for reply in good)
    prompts = [reply.usage.prompt_tokens for reply in good if reply.usage]
    gaps = [gap for reply in good for gap in reply.gaps]
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
        "ttft_ms": spread([reply.ttft for reply in good]),
        "ttft_mean_ms": 1000 * sum(reply.ttft for reply in good) / count,
        "itl_ms": spread(gaps),
        "itl_curve_ms": [round(1000 * percentile(gaps, percent), 3) for percent in CURVE] if gaps else [],
        "first_answer": "".join(good[0].texts)[:200] if good else "",
        **_goodput(replies, wall, goal),
    }


def _goodput(replies: Sequence[Reply], wall: float, goal: Goal | None) -> dict[str, Any]:
    if goal is None or not goal.is_set:
        return {}
    kept = sum(goal.is_kept(reply) for reply in replies)
    return {"goodput_per_s": kept / wall, "kept_share": kept / max(1, len(replies))}


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    return {f"p{percent}": 1000 * percentile(list(seconds), percent) for percent in PERCENTILES} | {
        "max": 1000 * max(seconds, default=0.0)
    }


SUMS = ("requests", "errors", "output_tokens", "finished_by_length")


def combined(repeats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One level of several runs: medians, but counts added up; with the runs themselves if there is more than one."""
    if len(repeats) == 1:
        return repeats[0]
    rates = [one["output_tokens_per_s"] for one in repeats]
    level: dict[str, Any] = {name: _median([one[name] for one in repeats]) for name in repeats[0]}
    level |= {name: sum(one[name] for one in repeats) for name in SUMS}
    level["error_messages"] = sorted({message for one in repeats for message in one["error_messages"]})[:5]
    return level | {"repeats": list(repeats), "output_tokens_per_s_range": [min(rates), max(rates)]}


def _median(values: list[Any]) -> Any:
    """Of numbers, within dicts and lists of equal shape too; the first of what is none."""
    first = values[0]
    if isinstance(first, dict):
        return {name: _median([value[name] for value in values]) for name in first}
    if isinstance(first, list) and all(isinstance(value, list) and len(value) == len(first) for value in values):
        return [_median(list(column)) for column in zip(*values, strict=True)]
    if all(isinstance(value, int | float) for value in values):
        return statistics.median(values)
    return first


def scatter(level: dict[str, Any]) -> str:
    """How far repeats lie apart, in percent of their median; empty of a single run."""
    if "repeats" not in level or not level["output_tokens_per_s"]:
        return ""
    low, high = level["output_tokens_per_s_range"]
    return f"{100 * (high - low) / level['output_tokens_per_s']:.0f} %"
