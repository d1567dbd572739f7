"""Bounded places that several keys share, and how soon one comes free.

With several keys, one may have at most half of what the others leave, and one place at least: however many requests it
sends, the next key finds room. When a refused request should come again is told from how fast places came free of
late, behind those that were told so before.
"""

import math
import time
from collections.abc import Callable

FIRST_GUESS_SECONDS = 2.0
"""Told while nothing has been measured."""
LONGEST_SECONDS = 60.0
"""OpenAI's clients take longer ones for a mistake."""
SMOOTHING = 0.2
"""The weight of what was measured last."""


class Pace:
    """How fast places come free, measured while there is somebody to free one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: float | None = None
        self._since: float | None = None

    def begin(self) -> None:
        """Somebody came to where nobody was."""
        self._since = self._clock()

    def note(self, count: int) -> None:
        """So many came free at once."""
        now = self._clock()
        if self._since is not None and count > 0:
            seconds = (now - self._since) / count
            self._seconds = seconds if self._seconds is None else self._seconds + SMOOTHING * (seconds - self._seconds)
        self._since = now

    def seconds_for(self, count: int) -> float:
        """Until so many more have come free. If nothing has moved for longer than usual, that is the pace."""
        if self._seconds is None or self._since is None:
            return FIRST_GUESS_SECONDS
        return max(self._seconds, (self._clock() - self._since) / max(1, count)) * count


class Room:
    """So many places."""

    def __init__(
        self,
        limit: int,
        *,
        is_shared: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_shared` says whether there are several keys."""
        self.limit = limit
        self.used = 0
        self.is_shared = is_shared
        self._of: dict[bytes, int] = {}
        self._pace = Pace(clock)
        self._promised = 0
        """Places of those that were refused and told when to come again."""

    def lacks(self, owner: bytes, amount: int) -> int:
        """How many places there are too few for so much of this owner's."""
        mine = self._of.get(owner, 0)
        missing = self.used + amount - self.limit
        if mine and self.is_shared():
            left = self.limit - (self.used - mine)
            missing = max(missing, mine + amount - max(1, left // 2))
        return max(0, missing)

    def take(self, owner: bytes, amount: int) -> None:
        """Take so many places, be they there or not."""
        if not self.used:
            self._pace.begin()
        self.used += amount
        self._of[owner] = self._of.get(owner, 0) + amount

    def give_back(self, owner: bytes, amount: int) -> None:
        """So many are free again."""
        if not amount:
            return
        self.used -= amount
        self._of[owner] -= amount
        if not self._of[owner]:
            del self._of[owner]
        self._pace.note(amount)
        self._promised = max(0, self._promised - amount) if self.used else 0

    def retry_after(self, missing: int) -> int:
        """In how many seconds to come again for what lacks so many places; counts it among those that were told."""
        seconds = self._pace.seconds_for(missing + self._promised)
        self._promised = min(self._promised + missing, self.limit)
        return math.ceil(min(max(seconds, 1.0), LONGEST_SECONDS))
