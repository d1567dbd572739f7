"""A row group of a step, and what is left of a step for more of them."""

from dataclasses import dataclass

from engine.scheduling.images import cut_in
from engine.scheduling.sequence import Sequence, Status

MAX_SCORED_TOKENS = 256
"""Prompt tokens of a step whose logits are needed, so that these take no more memory than those of a full batch."""

_NOTHING = range(0)


class Scheduled:
    """One row group of a step: `num_tokens` tokens of `sequence`, from its first uncomputed one on.

    Holds what it was made for, because a sequence may move on, wait again or end before the step's results are there.
    """

    __slots__ = ("_life", "end", "first", "num_tokens", "scored", "sequence")

    def __init__(self, sequence: Sequence, num_tokens: int) -> None:
        self.sequence = sequence
        self.num_tokens = num_tokens
        self.first = sequence.num_computed_tokens
        self.end = self.first + num_tokens
        """The position behind the last of its tokens."""
        self.scored = _NOTHING
        """Positions whose logits give the log-probability of the prompt token that follows, each once in a life."""
        if sequence.params.prompt_logprobs is not None:
            start = max(self.first, sequence.num_scored_tokens)
            self.scored = range(start, min(self.end, sequence.num_tokens_to_score))
        self._life = sequence.num_preemptions

    @property
    def samples(self) -> bool:
        """Whether this reaches the newest token, so that a next one is sampled."""
        sequence = self.sequence
        return self.end == sequence.num_tokens and sequence.params.max_tokens > 0

    @property
    def is_current(self) -> bool:
        """Whether the sequence is still running as it was: what the row computes is of use."""
        sequence = self.sequence
        return sequence.status is Status.RUNNING and sequence.num_preemptions == self._life


@dataclass(slots=True)
class Budget:
    """What is left of a step for rows that catch up."""

    tokens: int
    scored: int
    is_whole: bool = True
    """Nothing was taken yet."""

    def take(self, sequence: Sequence) -> int:
        """Tokens that the sequence may compute now, taken from the budget."""
        first = sequence.num_computed_tokens
        num_tokens = min(self.tokens, sequence.num_tokens - first)
        if num_tokens and (image := cut_in(sequence.images, first + num_tokens)):
            # One image may be larger than any budget.
            end = image.end if image.start == first and self.is_whole else image.start
            num_tokens = end - first
        if num_tokens:
            self.is_whole = False
        if sequence.num_scored_tokens < sequence.num_tokens_to_score:
            num_tokens = min(num_tokens, self.scored)
            self.scored -= num_tokens
        self.tokens = max(0, self.tokens - num_tokens)
        return num_tokens
