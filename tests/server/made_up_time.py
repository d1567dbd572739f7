"""Clocks that are not the machine's."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class TickingClock:
    """A `time` module for code under test, whose clock goes on only by being looked at: a step each time."""

    def __init__(self, step: float) -> None:
        self.now = 0.0
        self.step = step

    def monotonic(self) -> float:
        """The time, a step after the last."""
        self.now += self.step
        return self.now

    thread_time = monotonic


class MadeUpTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose time stands still while there is work, and jumps to the next timer when there is none."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """The made-up time, in seconds from zero."""
        return self.now


class _JumpingSelector(selectors.SelectSelector):
    """Waits for files only where no timer is set."""

    def __init__(self, loop: MadeUpTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready; if nothing is, the time of `timeout` has passed."""
        events = super().select(0 if timeout is not None else None)
        if not events and timeout is not None:
            self._loop.now += max(timeout, 0)
        return events


def run_in_made_up_time(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in a loop of made-up time."""
    with asyncio.Runner(loop_factory=MadeUpTimeLoop) as runner:
        return runner.run(work)
