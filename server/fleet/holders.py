"""The requests that have or want one model."""

import time
from typing import Protocol


class Holder(Protocol):
    """A request that has or wants a model; in truth a `Lease`."""

    def notice(self) -> None:
        """The model has changed."""


class Holders:
    """All of one model, in one event loop."""

    def __init__(self) -> None:
        self.active: set[Holder] = set()
        """Those that are answered: as long as there are any, the model is not ended."""
        self.waiting: set[Holder] = set()
        """Those that wait until it is ready."""
        self.last_used: float | None = None
        """When one last began or ended, by the monotonic clock."""

    def __len__(self) -> int:
        return len(self.active) + len(self.waiting)

    def add(self, holder: Holder, *, waits: bool) -> None:
        """A request begins; `waits` says that the model is not there for it yet."""
        (self.waiting if waits else self.active).add(holder)
        self.last_used = time.monotonic()

    def remove(self, holder: Holder) -> bool:
        """A request ends; whether it was among them still."""
        if holder not in self.active and holder not in self.waiting:
            return False
        self.active.discard(holder)
        self.waiting.discard(holder)
        self.last_used = time.monotonic()
        return True

    def let_in(self) -> None:
        """The model is there for all who wait."""
        self.active |= self.waiting
        self.waiting.clear()

    def notice(self) -> None:
        """The model has changed."""
        for holder in (*self.waiting, *self.active):
            holder.notice()
