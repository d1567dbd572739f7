"""Models of the start that have failed: the server itself tries them again.

Who asks for a model that has failed starts its next load. But a server that is not ready is sent no requests, so what
it began with would stay away for ever.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from server.fleet.handle import EngineHandle
from server.fleet.policy import FleetPolicy, ModelState


@dataclass(slots=True)
class _Retry:
    """One model's."""

    number: int = 0
    """Of loads in a row that the server has tried again."""
    planned: float = -inf
    """When the next was decided on, by the monotonic clock."""
    at: float | None = None
    """When it comes; None while the model has not failed."""


class Retries:
    """When each is tried again: after pauses that grow until the model has been well for a while."""

    def __init__(self, handles: Iterable[EngineHandle], policy: FleetPolicy) -> None:
        """Of `handles` those of the start count."""
        self._retries = {handle: _Retry() for handle in handles if handle.terms.residence.is_at_start}
        self._policy = policy
        self._has_begun = False

    def due(self, now: float) -> tuple[list[EngineHandle], float]:
        """Those whose time has come, to be loaded now, and when the next one's will, by the monotonic clock.

        None before every load of the start has ended: if all have failed, so has the server.
        """
        if not self._has_begun:
            self._has_begun = all(handle.state is not ModelState.LOADING for handle in self._retries)
            if not self._has_begun:
                return [], inf
        found, again_at = [], inf
        for handle, retry in self._retries.items():
            if handle.state is not ModelState.FAILED:
                retry.at = None
                continue
            if retry.at is None:
                retry.at = self._plan(handle, retry, now)
            if now >= retry.at:
                retry.at = None
                found.append(handle)
            else:
                again_at = min(again_at, retry.at)
        return found, again_at

    def _plan(self, handle: EngineHandle, retry: _Retry, now: float) -> float:
        policy = self._policy
        if retry.planned < handle.ready_since < now - policy.crash_window:
            retry.number = 0
        pause = min(policy.first_retry_delay * 2.0**retry.number, policy.max_retry_delay)
        retry.number, retry.planned = retry.number + 1, now
        return max(now + pause, handle.failures.retry_at)
