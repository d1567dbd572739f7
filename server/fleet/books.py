"""Who may be in a device's memory: the rules, without a clock, a process or an event loop.

`next_moves` looks at what is there (`Holding`) and what is wanted (`Wish`) and says what to do now, and when to look
again. Its promises, which the tests walk at random:

- What is granted to models that load, are ready or are ending never exceeds the budget by a move of ours. (Only a model
  that turns out larger than it was thought can; then idle ones are ended until it fits again.)
- Nothing is ended that has a request, is pinned, or has not been there for its stay.
- Memory of a model that is being ended counts as taken until its process is gone.
- Wishes are served in their order. One that waits for others to fall idle lets smaller ones pass that need nobody's
  end, until it has waited for `patience` seconds; then those in its way are closed to new requests.
- Of idle models the least recently used one goes first, and not one more than is needed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal

Phase = Literal["loading", "ready", "ending"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Holding:
    """A model that has memory. Times are in seconds of one clock, memory in bytes."""

    name: str
    num_bytes: int
    phase: Phase = "ready"
    is_pinned: bool = False
    is_busy: bool = False
    """Whether it has requests, or is being started anew after a death."""
    last_used: float = 0.0
    stays_until: float = 0.0
    """Before this it is not ended for another."""
    idle_at: float = inf
    """From then on it has been idle for too long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """A model that shall have memory."""

    name: str
    num_bytes: int
    since: float = 0.0
    may_end: bool = True
    """Whether others are ended for it; if not, it takes what is free or is dropped."""


@dataclass(slots=True)
class Moves:
    """What is to be done now."""

    load: list[str] = field(default_factory=list)
    end: list[str] = field(default_factory=list)
    close: list[str] = field(default_factory=list)
    """These shall take no new requests."""
    drop: list[str] = field(default_factory=list)
    """There is no room for these, and none is made."""
    refuse: dict[str, int] = field(default_factory=dict)
    """These can never be loaded; the most that they could have, in bytes."""
    again_at: float = inf
    """When something may change by the mere passing of time."""


def next_moves(
    total: int, holdings: Iterable[Holding], wishes: Sequence[Wish], *, now: float, patience: float
) -> Moves:
    """What to do with one device of `total` bytes. The wishes are in the order of their coming."""
    table = _Table(total, {holding.name: holding for holding in holdings}, now, patience)
    table.end_idle()
    table.serve(wishes)
    return table.moves


class _Table:
    """The holdings while moves are made."""

    def __init__(self, total: int, holdings: dict[str, Holding], now: float, patience: float) -> None:
        self.moves = Moves()
        self._total = total
        self._holdings = holdings
        self._now = now
        self._patience = patience
        self._free = total - sum(holding.num_bytes for holding in holdings.values())
        self._coming = sum(holding.num_bytes for holding in holdings.values() if holding.phase == "ending")

    def end_idle(self) -> None:
        """End what has been idle for too long, and what makes the rest exceed the budget."""
        for holding in self._idle():
            if holding.idle_at <= self._now:
                self._end(holding)
            else:
                self._look_again(holding.idle_at)
        if self._free + self._coming < 0:
            self._make_room(0)

    def serve(self, wishes: Sequence[Wish]) -> None:
        """Load what fits, and make room for the first that does not."""
        is_held_up = False
        for wish in wishes:
            most = self._total - sum(h.num_bytes for h in self._holdings.values() if h.is_pinned)
            if wish.num_bytes > most:
                self.moves.refuse[wish.name] = most
            elif wish.num_bytes <= self._free:
                self.moves.load.append(wish.name)
                self._free -= wish.num_bytes
            elif not wish.may_end:
                self._wait_or_drop(wish)
            elif is_held_up:
                continue
            elif self._make_room(wish.num_bytes):
                # What is being ended for this one is not for those behind it.
                self._free -= wish.num_bytes
            else:
                is_held_up = True
                if self._now >= wish.since + self._patience:
                    self._close_for(wish)
                    return
                self._look_again(wish.since + self._patience)

    def _wait_or_drop(self, wish: Wish) -> None:
        """What loads may turn out smaller than was thought, and what ends gives its memory back."""
        if all(holding.phase == "ready" for holding in self._holdings.values()) and not self.moves.load:
            self.moves.drop.append(wish.name)

    def _make_room(self, num_bytes: int) -> bool:
        """Whether there will be so much once what is ending has ended; more is ended for it if need be and can be."""
        short = num_bytes - self._free - self._coming
        if short <= 0:
            return True
        victims = _least_used(self._idle(), short)
        if victims is None:
            return False
        stays_until = max(victim.stays_until for victim in victims)
        if stays_until > self._now:
            # In this order, rather than another one now: who was used last is asked for again first.
            self._look_again(stays_until)
            return False
        for victim in victims:
            self._end(victim)
        return True

    def _close_for(self, wish: Wish) -> None:
        short = wish.num_bytes - self._free - self._coming
        movable = [h for h in self._holdings.values() if h.phase == "ready" and not h.is_pinned]
        for holding in _least_used(movable, short) or ():
            if holding.is_busy:
                self.moves.close.append(holding.name)

    def _idle(self) -> list[Holding]:
        return [h for h in self._holdings.values() if h.phase == "ready" and not h.is_busy and not h.is_pinned]

    def _end(self, holding: Holding) -> None:
        del self._holdings[holding.name]
        self._coming += holding.num_bytes
        self.moves.end.append(holding.name)

    def _look_again(self, when: float) -> None:
        self.moves.again_at = min(self.moves.again_at, when)


def _least_used(holdings: Iterable[Holding], short: int) -> list[Holding] | None:
    """The least recently used of them that together have so many bytes, without those that need not go; None if all do
    not suffice.
    """
    chosen: list[Holding] = []
    found = 0
    for holding in sorted(holdings, key=lambda holding: holding.last_used):
        if found >= short:
            break
        chosen.append(holding)
        found += holding.num_bytes
    if found < short:
        return None
    for holding in list(chosen):
        if found - holding.num_bytes >= short:
            chosen.remove(holding)
            found -= holding.num_bytes
    return chosen
