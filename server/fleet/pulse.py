"""What the server hears of an engine process beside its messages: that it runs at all, and its last word."""

import asyncio
import contextlib
import os
import time

from engine.pulse import BEAT

MOST_BYTES = 65536


class PulseReader:
    """The reading end of one process's pulse. Must be made and closed in one running event loop."""

    def __init__(self) -> None:
        self._read, self._theirs = os.pipe()
        os.set_blocking(self._read, False)
        self.felt: float | None = None
        """When it last beat, by the monotonic clock; None before it ever did."""
        self._said = b""
        self._is_open = True
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._read, self.read)

    @property
    def theirs(self) -> int:
        """The descriptor that the process must have, until it is started."""
        return self._theirs

    @property
    def last_word(self) -> str | None:
        """Why the process said that it ends, if it said so."""
        words = [line for line in self._said.split(b"\n") if line.strip(BEAT)]
        return words[-1].decode("utf-8", "replace") if words else None

    def started(self) -> None:
        """The process is there: its end of the pipe is its alone."""
        os.close(self._theirs)

    def read(self) -> None:
        """Take what is there."""
        if not self._is_open:
            return
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._read, MOST_BYTES)
            if not data:  # the process has ended
                self._loop.remove_reader(self._read)
        if data:
            self.felt = time.monotonic()
            if data.strip(BEAT):
                self._said = (self._said + data)[-MOST_BYTES:]

    def close(self) -> None:
        """Hear no more. Idempotent."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._read)
            os.close(self._read)
