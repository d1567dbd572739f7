"""A step between its launch and its results."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from engine.device.device import to_device
from engine.device.governor import ThreadGovernor
from engine.messages import TokenLogprobs
from engine.sampling.logprobs import score_prompts
from engine.sampling.sampler import PendingSample, Sampled
from engine.scheduling.scheduled import Scheduled
from engine.scheduling.sequence import Sequence

Sampling = Callable[[torch.Tensor, list[Sequence]], PendingSample]


class StepInFlight:
    """A step whose forward pass was launched: its logits, and then its samples, on their way."""

    def __init__(
        self, sampler: Sampling, governor: ThreadGovernor, rows: list[Scheduled], logits: torch.Tensor, started: float
    ) -> None:
        """`logits` `[R, V]`: of the rows that sample, then of all positions that are scored.

        `sampler` launches the sampling of a token of each of some sequences; the `governor` learns how long it took.
        """
        self._sampler, self._governor = sampler, governor
        self._logits = logits
        self._started = started
        self._sampling = [row for row in rows if row.samples]
        self._scoring = [row for row in rows if row.scored]
        self._is_decode = all(row.num_tokens == 1 for row in rows)
        self._sample: PendingSample | None = None
        self._scores: list[list[TokenLogprobs] | None] = []

    @torch.inference_mode()
    def sample(self, sampling: list[Scheduled], scoring: list[Scheduled]) -> None:
        """Launch the sampling of some of the rows that sample, and score some of those that are scored."""
        num_samples = len(self._sampling)
        logits = self._logits[:num_samples]
        if len(sampling) < num_samples:
            wanted = set(sampling)
            places = [place for place, row in enumerate(self._sampling) if row in wanted]
            logits = logits[to_device(np.array(places, dtype=np.int64), logits.device)]
        if sampling:
            self._sample = self._sampler(logits, [row.sequence for row in sampling])
        if scoring:
            scores = score_prompts(self._logits[num_samples:], self._scoring)
            self._scores = [score for row, score in zip(self._scoring, scores, strict=True) if row in scoring]
        if self._is_decode:
            self._governor.observe(time.perf_counter() - self._started, num_samples)

    def result(self) -> Sampled:
        """Wait for what was sampled and scored: entries in the order of the rows given to `sample`."""
        sampled = Sampled([], [], []) if self._sample is None else self._sample.result()
        return replace(sampled, prompt_logprobs=self._scores) if self._scores else sampled
