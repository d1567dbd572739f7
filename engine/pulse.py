"""A process's pulse: a byte a second through a pipe, from a thread that its work does not hold up, and its last word.

So whoever started it can tell a process that is stopped from one whose work takes long, and hears why it ends also
where the socket belongs to a thread that is stuck.
"""

import contextlib
import os
import threading
import time

BEAT_SECONDS = 1.0
BEAT = b"."
LONGEST_WORD = 1000
SILENCE_SECONDS, SPOKEN_SECONDS = 15.0, 5.0
"""Who says nothing for the first is stopped; for less than the second, perhaps just slow, however short its steps."""


def silence_of(step_seconds: float) -> float:
    """After how many seconds in which it says nothing a rank that has loaded, or was stopped by a signal, is ended."""
    return max(SPOKEN_SECONDS, min(SILENCE_SECONDS, step_seconds))


class Pulse:
    """This process's own."""

    def __init__(self, descriptor: int | None) -> None:
        """`descriptor` is the pipe's; without one nobody listens."""
        self._descriptor = descriptor
        if descriptor is not None:
            os.set_inheritable(descriptor, False)

    def begin(self) -> None:
        """Beat from now on."""
        if self._descriptor is not None:
            threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    def say(self, word: str) -> None:
        """Why this process ends, from any thread; the last such word counts."""
        self._write(b"\n" + word.replace("\n", " ").encode()[:LONGEST_WORD] + b"\n")

    def _beat(self) -> None:
        while self._write(BEAT):
            time.sleep(BEAT_SECONDS)

    def _write(self, data: bytes) -> bool:
        if self._descriptor is None:
            return False
        with contextlib.suppress(OSError):  # whoever listened is gone
            return os.write(self._descriptor, data) == len(data)
        return False
