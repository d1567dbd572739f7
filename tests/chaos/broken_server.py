"""The command line with a bug of our own in it, to see whether it is found.

    python -m tests.chaos.broken_server BUG serve ...

`descriptor` and `memory` are kept by every request for ever; `lost` leaves every seventh without an answer.
"""

import asyncio
import itertools
import os
import sys
from typing import Any

from server.commands.cli import main
from server.routes.answering import Answer

QUIET = 12
"""Requests that are asked before there are any faults."""

_kept: list[object] = []
_numbers = itertools.count(1)
_whole = Answer.__call__


async def _descriptor(self: Answer, *channels: Any) -> None:
    _kept.append(os.open(os.devnull, os.O_RDONLY))
    await _whole(self, *channels)


async def _memory(self: Answer, *channels: Any) -> None:
    _kept.append(os.urandom(4 * 2**20))
    await _whole(self, *channels)


async def _lost(self: Answer, *channels: Any) -> None:
    number = next(_numbers)
    if number > QUIET and number % 7 == 0:
        await asyncio.sleep(3600)
    await _whole(self, *channels)


if __name__ == "__main__":
    Answer.__call__ = {"descriptor": _descriptor, "memory": _memory, "lost": _lost}[sys.argv[1]]  # type: ignore[method-assign]
    sys.exit(main(sys.argv[2:]))
