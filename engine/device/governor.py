"""All cores or one: which is faster depends on who else wants the cores, so it is tried out while serving.

OpenMP's threads meet at a barrier hundreds of times a step and spin there. With the cores to themselves that is the
fastest way. Where another process takes a core, a spinning thread uses up its time slice while the one it waits for is
not running, and a step that takes 20 ms may take a second; one thread alone then does much better.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from statistics import median

logger = logging.getLogger(__name__)

FIRST_TRIAL_STEPS = 8
"""Steps before one thread is tried for the first time."""
TRIAL_STEPS = 5
REMEMBERED_STEPS = 64
SLOW = 3.0
"""A step is slow that takes this many times the fastest one of its size; so many of these in a row start a trial."""
SLOW_STEPS = 3
BETTER = 0.95
"""A mode is better whose steps take at most this share of the other's."""
FIRST_HOLD_SECONDS = 2.0
"""How long one thread is kept before all are tried again; doubles with each time that all were worse."""
LONGEST_HOLD_SECONDS = 60.0


class ThreadGovernor:
    """Sees the time of every step of decoding sequences alone, and sets the number of threads."""

    def __init__(self, threads: int, apply: Callable[[int], None], clock: Callable[[], float] = time.monotonic) -> None:
        """`apply` sets the number of threads; `threads` are set already."""
        self._threads = threads
        self._apply = apply
        self._clock = clock
        self._single = False
        self._trial: list[float] | None = None
        """Step times of the trial under way, None outside of one."""
        self._size = 0
        self._recent: deque[float] = deque(maxlen=REMEMBERED_STEPS)
        """Step times of the mode in use, for the size in use."""
        self._slow = 0
        self._untried = True
        self._hold = FIRST_HOLD_SECONDS
        self._held_until = 0.0

    def observe(self, seconds: float, size: int) -> None:
        """Learn from one step of `size` decoding sequences and no prompts."""
        if self._threads == 1:
            return
        size = size.bit_length()
        if size != self._size:
            if self._trial is not None:
                self._switch()
                self._trial = None
            self._size, self._slow = size, 0
            self._recent.clear()
        if self._trial is not None:
            self._continue_trial(seconds)
            return
        self._recent.append(seconds)
        self._slow = self._slow + 1 if seconds > SLOW * min(self._recent) else 0
        if len(self._recent) >= TRIAL_STEPS and self._wants_trial():
            self._switch()
            self._trial = []

    def _wants_trial(self) -> bool:
        if self._single:
            return self._clock() >= self._held_until
        return self._slow >= SLOW_STEPS or (self._untried and len(self._recent) >= FIRST_TRIAL_STEPS)

    def _continue_trial(self, seconds: float) -> None:
        assert self._trial is not None
        self._trial.append(seconds)
        usual = median(list(self._recent)[-TRIAL_STEPS:])
        times = self._trial[1:]  # the first step in a mode builds oneDNN's primitives for that number of threads
        if len(times) < TRIAL_STEPS and not (len(times) >= 2 and min(times) > 2 * usual):
            return
        better = median(times) < BETTER * usual
        if better:
            self._recent = deque(times, maxlen=REMEMBERED_STEPS)
            logger.info("%s is faster now", "one thread" if self._single else f"{self._threads} threads")
        else:
            self._switch()
            # What was slow beside a fast past is the new normal if the other mode is no faster.
            self._recent = deque(list(self._recent)[-TRIAL_STEPS:], maxlen=REMEMBERED_STEPS)
        if self._single:
            self._hold = FIRST_HOLD_SECONDS if better else min(2 * self._hold, LONGEST_HOLD_SECONDS)
            self._held_until = self._clock() + self._hold
        self._trial, self._slow, self._untried = None, 0, False

    def _switch(self) -> None:
        self._single = not self._single
        self._apply(1 if self._single else self._threads)
