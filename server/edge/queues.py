"""The queue in front of one model: how many answers and prompt tokens may wait, and for how long."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from server.edge.rooms import Room
from server.protocol.errors import overloaded

MAX_WAITING_ANSWERS = 1024
MAX_WAITING_TOKENS = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueLimits:
    """Bounds of one model's queue, and the time that its requests have, in seconds; None for no limit."""

    max_queue: int = MAX_WAITING_ANSWERS
    """Answers that wait for their first token."""
    max_queue_tokens: int = MAX_WAITING_TOKENS
    """Tokens of their prompts; a prompt that waits alone may have more."""
    queue_timeout: float | None = None
    """From when the engine has a request until its first token."""
    request_timeout: float | None = None
    """From a request's arrival until the end of its answer."""


class Place:
    """One request's place in the queue of a model, until its answer begins or it ends."""

    def __init__(self, queue: "ModelQueue", owner: bytes, answers: int) -> None:
        """Use `ModelQueue.enter`."""
        self._queue = queue
        self._owner = owner
        self._answers = answers
        self._tokens = 0

    def bring(self, tokens: int) -> None:
        """Its prompts have so many tokens. Raises `ApiError` 503 if these are too many beside those that wait."""
        self._queue.check_tokens(self._owner, tokens)
        self._tokens += tokens
        self._queue.tokens.take(self._owner, tokens)

    def release(self) -> None:
        """It waits no longer. May be called any number of times."""
        self._queue.answers.give_back(self._owner, self._answers)
        self._queue.tokens.give_back(self._owner, self._tokens)
        self._answers = self._tokens = 0


class ModelQueue:
    """Counts what waits for one model."""

    def __init__(
        self,
        model: str,
        limits: QueueLimits,
        *,
        is_shared: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_shared` says whether several keys ask."""
        self.limits = limits
        self.refused = 0
        self.answers = Room(limits.max_queue, is_shared=is_shared, clock=clock)
        self.tokens = Room(limits.max_queue_tokens, is_shared=is_shared, clock=clock)
        self._model = model

    @property
    def is_full(self) -> bool:
        """Whether a request would be refused whoever asks."""
        return self.answers.used >= self.answers.limit or self.tokens.used >= self.tokens.limit

    def has_room(self, owner: bytes) -> bool:
        """Whether a small request of this owner's would find a place."""
        return not (self.answers.used and self.answers.lacks(owner, 1)) and not (
            self.tokens.used and self.tokens.lacks(owner, 1)
        )

    def check(self, owner: bytes, answers: int = 1) -> None:
        """Raise `ApiError` 503, with Retry-After, if a request of so many answers finds no place."""
        if self.answers.used and (missing := self.answers.lacks(owner, answers)):
            self._refuse(
                self.answers, missing, f"{self.answers.used} answers wait for it already", "answers", "max_queue"
            )
        self.check_tokens(owner, 1)

    def enter(self, owner: bytes, answers: int) -> Place:
        """A place for a request of so many answers. Raises as `check` does."""
        self.check(owner, answers)
        self.answers.take(owner, answers)
        return Place(self, owner, answers)

    def check_tokens(self, owner: bytes, tokens: int) -> None:
        """Raise `ApiError` 503 if prompts of so many tokens more may not wait now."""
        if self.tokens.used and (missing := self.tokens.lacks(owner, tokens)):
            already = f"prompts of {self.tokens.used} tokens wait for it already"
            if tokens > 1:
                already += f", and this one has {tokens}"
            self._refuse(self.tokens, missing, already, "tokens", "max_queue_tokens")

    def _refuse(self, room: Room, missing: int, already: str, what: str, limit: str) -> None:
        self.refused += 1
        seconds = room.retry_after(missing)
        share = "; a key may have half of what others leave" if room.is_shared() else ""
        raise overloaded(
            f"The queue of the model {self._model} is full: {already}, and its limit is {room.limit} {what}{share};"
            f" come again in {seconds} s",
            retry_after=seconds,
            reason=limit,
        )
