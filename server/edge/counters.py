"""What the API process counts of the requests that pass it."""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field

LATENCY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds in seconds."""


@dataclass(slots=True)
class Histogram:
    """Counts by upper bound, and their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BUCKETS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count one value."""
        self.counts[bisect.bisect_left(LATENCY_BUCKETS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str) -> Iterator[str]:
        """The series of this histogram."""
        seen = 0
        for bound, count in zip((*map(str, LATENCY_BUCKETS), "+Inf"), self.counts, strict=True):
            seen += count
            yield f'{name}_bucket{{le="{bound}"}} {seen}'
        yield f"{name}_sum {self.total:.6f}"
        yield f"{name}_count {seen}"


@dataclass(slots=True)
class ServerCounters:
    """All counts of one server."""

    responses: dict[int, int] = field(default_factory=lambda: {hundred: 0 for hundred in range(1, 6)})
    """By the hundreds of the status code."""
    refused: int = 0
    """Requests refused because the server was full."""
    disconnected: int = 0
    """Requests whose client left before the answer was complete."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """As reported to clients in `usage`."""
    relaxed_requests: int = 0
    relaxed_keywords: int = 0
    """Answered though keywords of their schemas were left out, and how many keywords."""
    first_token: Histogram = field(default_factory=Histogram)
    duration: Histogram = field(default_factory=Histogram)
