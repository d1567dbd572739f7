"""What a request does while its model is loaded: a stream says how far that is, everything else waits in silence."""

import time

from engine.errors import HeadraceError
from server.context import not_ready, stage_words
from server.edge.sse import KEEP_ALIVE_SECONDS, EventWriter
from server.fleet.lease import Lease

AT_ONCE_SECONDS = 0.25
"""What is refused within this time has a status of its own, also where a stream was asked for."""


async def wait_until_loaded(lease: Lease, seconds: float) -> None:
    """Wait up to so many seconds. Raises `ApiError` 503: with Retry-After if it still loads, with the reason if it
    has failed.
    """
    if not await _loaded_within(lease, seconds):
        raise not_ready(lease.handle)


async def tell_until_loaded(lease: Lease, writer: EventWriter) -> None:
    """Send the headers of a stream soon, and a comment at each stage. Raises `ApiError` 503 if the load fails."""
    if not writer.started and not await _loaded_within(lease, AT_ONCE_SECONDS):
        await writer.start()
    while not lease.is_active:
        words = stage_words(lease.handle)
        await writer.comment(f"loading: {words}")
        while not lease.is_active and stage_words(lease.handle) == words:
            if not await _change(lease, KEEP_ALIVE_SECONDS):
                break


async def _loaded_within(lease: Lease, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not lease.is_active:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        await _change(lease, left)
    return True


async def _change(lease: Lease, seconds: float) -> bool:
    try:
        return await lease.change(seconds)
    except HeadraceError as error:
        raise not_ready(lease.handle) from error
