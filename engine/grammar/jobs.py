"""Constraints that wait to be compiled: in which order, and how many of one tenant."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from engine.constraint import Constraint, ReasoningBudget
from engine.errors import RequestError
from engine.grammar.language.counts import positions

MAX_QUEUED = 256
MAX_SHARE = 128
"""Of one tenant."""
CHEAP_COST = 50_000
OVERTAKEN_SECONDS = 10.0
"""After so long a job is overtaken no more."""
MAX_READ_CHARS = 4096
"""Of a source, to estimate what it costs; the longer ones cost by their length."""


@dataclass(frozen=True, slots=True)
class Queued:
    """One request's constraint or budget."""

    key: int
    constraint: Constraint | None
    budget: ReasoningBudget | None
    tenant: bytes
    cost: int
    arrived: float

    @property
    def is_cheap(self) -> bool:
        """Whether it may take the way that is kept free of what may take long."""
        return self.cost <= CHEAP_COST


class JobQueue:
    """Thread-safe. Of jobs of like size the first comes first, and the smaller before the larger."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._jobs: list[Queued] = []
        self._changed = threading.Condition()
        self._closed = False

    def put(self, key: int, constraint: Constraint | None, budget: ReasoningBudget | None, tenant: bytes) -> None:
        """Add a job. Raises `RequestError` where too many wait, or too many of this tenant."""
        with self._changed:
            if len(self._jobs) >= MAX_QUEUED:
                raise RequestError(f"{MAX_QUEUED} constraints wait to be compiled already", code="overloaded")
            if Counter(job.tenant for job in self._jobs)[tenant] >= MAX_SHARE:
                raise RequestError(
                    f"{MAX_SHARE} constraints of this API key wait to be compiled already", code="overloaded"
                )
            self._jobs.append(Queued(key, constraint, budget, tenant, estimated_cost(constraint), self._clock()))
            self._changed.notify_all()

    def drop(self, key: int) -> None:
        """Forget a job; others are ignored."""
        with self._changed:
            self._jobs = [job for job in self._jobs if job.key != key]

    def take(self, *, cheap: bool = False, timeout: float | None = None) -> Queued | None:
        """The next job, waited for; `cheap` takes no others. None once the queue is closed, or after `timeout`."""
        with self._changed:
            while not self._closed:
                jobs = [job for job in self._jobs if job.is_cheap or not cheap]
                if jobs:
                    chosen = self._next(jobs)
                    self._jobs.remove(chosen)
                    return chosen
                if not self._changed.wait(timeout):
                    return None
            return None

    @property
    def is_closed(self) -> bool:
        """Whether nothing comes any more."""
        return self._closed

    def close(self) -> None:
        """Let all who take go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _next(self, jobs: list[Queued]) -> Queued:
        oldest = jobs[0]
        if self._clock() - oldest.arrived > OVERTAKEN_SECONDS:
            return oldest
        return min(jobs, key=lambda job: job.cost.bit_length())


def estimated_cost(constraint: Constraint | None) -> int:
    """About what it costs to compile, in characters once counts are written out."""
    if constraint is None:
        return 0
    sources = [constraint.source, *(entry.schema for entry in constraint.schemas)]
    sources += [entry.pattern for entry in constraint.patterns]
    return sum(positions(source) if len(source) <= MAX_READ_CHARS else len(source) for source in sources)
