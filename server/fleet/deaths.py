"""When an engine process is ended for its silence, and when another is started after one has died or failed to load.

A ready model that dies is started again by itself, until it has died too often (`Deaths`). Where a load fails the next
request tries again, but not at once (`Failures`).
"""

import asyncio
import logging
import math
import time

from engine.config import EngineConfig
from engine.errors import EngineDeadError, HeadraceError, ModelLoadError
from engine.pulse import silence_of
from server.fleet.engine_process import EngineProcess
from server.fleet.policy import FleetPolicy

logger = logging.getLogger(__name__)

ABORT_SECONDS = 1.0
"""What a silent process has to print where its threads stand, before it is killed."""


def stopped_after(config: EngineConfig, hang_after: float) -> float:
    """Without a pulse of so many seconds a process counts as stopped. Of several ranks all others wait for it then."""
    return hang_after if config.tensor_parallel == 1 else min(hang_after, silence_of(config.step_timeout or math.inf))


def _silence(process: EngineProcess, hang_after: float, stopped_after: float) -> str:
    """For how many seconds a process has said nothing, if that is too long."""
    now, client, felt = time.monotonic(), process.client, process.pulse.felt
    if client.info is not None and now - client.last_heard > hang_after:
        return f"{hang_after:g}"
    silent, limit = 0.0 if felt is None else now - felt, stopped_after
    if silent > limit and client.info is None and not process.is_stopped:
        limit = hang_after
    return f"{limit:g}" if silent > limit else ""


class Deaths:
    """How often a model's engine has died of late."""

    def __init__(self, policy: FleetPolicy) -> None:
        self._policy = policy
        self._times: list[float] = []

    def forget(self) -> None:
        """Begin to count anew."""
        self._times = []

    def pause(self) -> float | None:
        """Count a death; the seconds before the next start, None when there were too many."""
        policy, now = self._policy, time.monotonic()
        self._times = [*(at for at in self._times if now - at < policy.crash_window), now]
        if len(self._times) >= policy.max_crashes:
            return None
        return float(min(policy.first_restart_delay * 2 ** (len(self._times) - 1), policy.max_restart_delay))

    def final(self, error: HeadraceError, *, has_been_ready: bool) -> HeadraceError:
        """What is told where an `error` is the last: of a load that failed, or of the last of too many deaths."""
        if has_been_ready:
            minutes = self._policy.crash_window / 60
            return EngineDeadError(
                f"{error}; that was death {self._policy.max_crashes} within {minutes:g} minutes, so it is left alone",
                hint="find the cause (the engine's last lines are in the log), then load it again",
            )
        if isinstance(error, EngineDeadError):
            hint = "the lines above say what it was doing; if it was killed, give it less with --context or --memory"
            return ModelLoadError(f"{error} while loading", hint=hint)
        return error


class Failures:
    """How many loads of a model have failed in a row."""

    def __init__(self, policy: FleetPolicy) -> None:
        self.retry_at = 0.0
        """When a request may start the next load, by the monotonic clock."""
        self._policy = policy
        self._number = 0

    @property
    def is_too_soon(self) -> bool:
        """Whether nobody should try again yet."""
        return time.monotonic() < self.retry_at

    def count(self) -> None:
        """A load has failed; each further one doubles the time until the next."""
        policy = self._policy
        self.retry_at = time.monotonic() + min(policy.first_retry_delay * 2**self._number, policy.max_retry_delay)
        self._number += 1

    def forget(self) -> None:
        """A load has not failed."""
        self._number = 0


async def end_when_silent(process: EngineProcess, hang_after: float, stopped_after: float) -> None:
    """Watch a process until it seems to be stuck, and end it then.

    That is when it has come no further for `hang_after` seconds after it has loaded, or has no pulse any more: for
    `stopped_after` seconds, or while it loads for `hang_after`, unless the kernel says that it was stopped.
    """
    silent, since = 0, ""
    while silent < 2:
        await asyncio.sleep(min(1.0, stopped_after / 4))
        # Twice, since after a pause of this very process what came meanwhile is read only now.
        since = _silence(process, hang_after, stopped_after)
        silent = silent + 1 if since else 0
    process.reason = f"said nothing for {since} s and was ended"
    logger.error("the engine of model %s said nothing for %s s: replacing it", process.name, since)
    process.abort()
    await asyncio.sleep(ABORT_SECONDS)
    process.kill()
