"""What the engine needs of a model: steps that are launched, sampled, and read back when their results are there."""

from dataclasses import dataclass, field
from typing import Protocol

from engine.messages import TokenLogprobs
from engine.sampling.sampler import Sampled
from engine.scheduling.scheduled import Scheduled


class Flight(Protocol):
    """A step whose forward pass was launched."""

    def sample(self, sampling: list[Scheduled], scoring: list[Scheduled]) -> None:
        """Launch the sampling of some of its rows, and note that some are to be scored."""

    def result(self) -> Sampled:
        """Wait for the outcome: entries in the order of the rows given to `sample`."""


class Runner(Protocol):
    """`ModelRunner`, `engine.ranks.leader`'s, or a fake in tests."""

    def forward(self, rows: list[Scheduled]) -> Flight:
        """Launch the computation of the rows."""

    def encode_images(self, row: Scheduled, seconds: float | None) -> bool:
        """Encode the images that a row has to do with, for about so long; whether all are there.

        0 seconds: only look. None: until they are. May raise, for this row alone.
        """

    def rest(self) -> None:
        """Nobody waits for anything: let go of what was begun or kept for steps that do not come."""

    def sleep(self) -> tuple[int, int]:
        """Put the model's weights and cache away; the bytes freed on its device, and taken in the host's memory."""

    def wake(self) -> None:
        """Bring it back, with an empty KV cache."""

    def close(self) -> None:
        """End what runs beside it."""

    def wipe_blocks(self, blocks: list[int], block_size: int) -> None:
        """Zero the content of blocks."""


@dataclass(slots=True)
class Step:
    """One step between its launch and its landing."""

    rows: list[Scheduled]
    flight: Flight
    started: float
    """By `time.perf_counter`."""
    sampling: list[Scheduled] = field(default_factory=list)
    scoring: list[Scheduled] = field(default_factory=list)

    def sample(self) -> None:
        """Launch the sampling of the rows that still matter. All tokens before those are known by now."""
        self.sampling = [row for row in self.rows if row.samples and row.is_current]
        self.scoring = [row for row in self.rows if row.scored and row.is_current]
        self.flight.sample(self.sampling, self.scoring)
        for row in self.sampling:
            row.sequence.num_unread_tokens = 1

    def land(self) -> "Landed":
        """Wait for the results."""
        sampled = self.flight.result()
        return Landed(
            sampled,
            {row: position for position, row in enumerate(self.sampling)},
            dict(zip(self.scoring, sampled.prompt_logprobs, strict=True)),
        )


@dataclass(frozen=True, slots=True)
class Landed:
    """The results of a step, by its rows."""

    sampled: Sampled
    positions: dict[Scheduled, int]
    """Where in `sampled` a row that was sampled stands."""
    scores: dict[Scheduled, list[TokenLogprobs] | None]

    def failure(self, row: Scheduled) -> str | None:
        """Why the row's results cannot be used; None if they can."""
        position = self.positions.get(row)
        if position is not None and position in self.sampled.failures:
            return self.sampled.failures[position]
        return None

    def is_finite(self, row: Scheduled) -> bool:
        """Whether the logits of all of the row's results were numbers."""
        position = self.positions.get(row)
        return (position is None or self.sampled.finite[position]) and self.scores.get(row, []) is not None
