"""When the engine process of a model is ended for its silence, and when it has died too often to be started again."""

import asyncio
import logging
import time

from engine.errors import EngineDeadError, HeadraceError, ModelLoadError
from server.fleet.engine_process import EngineProcess
from server.fleet.policy import FleetPolicy

logger = logging.getLogger(__name__)

ABORT_SECONDS = 1.0
"""What a silent process has to print where its threads stand, before it is killed."""


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
                f"{error}; that was death {self._policy.max_crashes} within {minutes:g} minutes, so it stays down",
                hint="load it again once the cause is found; the engine's last lines are in the log",
            )
        if isinstance(error, EngineDeadError):
            hint = "the lines above say what it was doing; if it was killed, give it less with --context or --memory"
            return ModelLoadError(f"{error} while loading", hint=hint)
        return error


async def end_when_silent(process: EngineProcess, hang_after: float) -> None:
    """Watch a process until it has said nothing for `hang_after` seconds, and end it then."""
    silent = 0
    while silent < 2:
        await asyncio.sleep(min(1.0, hang_after / 4))
        # Twice, since after a pause of this very process the frames that came meanwhile are read only now.
        silent = silent + 1 if time.monotonic() - process.client.last_heard > hang_after else 0
    logger.error("the engine of model %s said nothing for %.0f s: replacing it", process.name, hang_after)
    process.abort()
    await asyncio.sleep(ABORT_SECONDS)
    process.kill()
