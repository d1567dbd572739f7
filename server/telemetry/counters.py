"""What the API process counts of the requests that pass it.

Counting is adding to plain numbers: everything happens in one thread, and what reads them (`server.metrics`) does so
between two requests. Series are few: labels are models of the server's table, names of
the operator's keys and words from this file.
"""

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of what a person waits for."""
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)
"""Upper bounds of what passes between two tokens."""
TOKENS = (1.0, 2.0, 5.0, *(float(digit * 10**power) for power in range(1, 5) for digit in (1, 2, 5)), 1e5, 2e5)
"""Upper bounds of lengths."""

FINISHES = ("stop", "length", "tool_calls", "function_call", "error", "abort")
"""How a choice ends: as its client is told, with an error, or because nobody waits for it any more."""


class Histogram:
    """Counts by upper bound, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        """`bounds` are the upper bounds in rising order; what is greater than all is counted too."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """By bound, each without those of the smaller bounds; the last is of what is beyond all."""
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, or so many equal ones."""
        self.counts[bisect.bisect_left(self.bounds, value)] += times
        self.total += value * times


@dataclass(slots=True)
class ModelCounters:
    """What is counted of the requests of one model."""

    queue: Histogram = field(default_factory=Histogram)
    first_token: Histogram = field(default_factory=Histogram)
    prefill: Histogram = field(default_factory=Histogram)
    decode: Histogram = field(default_factory=Histogram)
    duration: Histogram = field(default_factory=Histogram)
    """Seconds of a request: see the texts of `server.metrics`, which say from when to when."""
    between_tokens: Histogram = field(default_factory=lambda: Histogram(STEP_SECONDS))
    compile: Histogram = field(default_factory=Histogram)
    prompt_length: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    answer_length: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    finishes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FINISHES, 0))
    """Choices by how they ended."""


@dataclass(slots=True)
class KeyCounters:
    """What is counted of the requests that came with one key."""

    requests: int = 0
    limited: int = 0
    """Those of them that its limits refused."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """As reported to clients in `usage`."""


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
    models: dict[str, ModelCounters] = field(default_factory=dict)
    keys: dict[str, KeyCounters] = field(default_factory=dict)
    """By the name of the key."""

    def of(self, model: str) -> ModelCounters:
        """The counts of a model; `model` is a name of the server's table, never what a request says."""
        return self.models.setdefault(model, ModelCounters())

    def of_key(self, name: str, names: Iterable[str]) -> KeyCounters:
        """The counts of a key that is called so; `names` are all that there are now.

        Those that are gone are forgotten when one that is new is asked for, so there are never many more than keys.
        """
        if name not in self.keys:
            self.keys = {known: self.keys.get(known, KeyCounters()) for known in names}
        return self.keys.setdefault(name, KeyCounters())
