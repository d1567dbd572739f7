"""Rank 0's eye on the others: when one of them ends, is stopped, or a step takes too long, all end.

A collective waits for those that never come, for minutes with gloo and for ever with NCCL. So a thread of rank 0 looks
after the other processes, and ends its own with them: whoever supervises it starts all of them again.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait

from engine.cache import Progress
from engine.errors import EngineDeadError
from engine.lifetime import describe_exit
from engine.pulse import silence_of
from engine.ranks.messages import Alive, Arrived, Failed, Ready, Stage, decode_report

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
LOAD_SILENCE_SECONDS = 120.0
"""What a rank that loads may say nothing. It speaks once a second, but not while something holds the interpreter's
lock, as imports and reading from a slow disk do; `silence_of` is for later, and for one that a signal has stopped."""
LOAD_SECONDS = 600.0
"""After which no rank has come any further while they load: they wait for each other."""
GRACE_SECONDS, LOAD_GRACE_SECONDS = 0.5, 5.0
"""What rank 0 gets to end by itself: little, since it may be stuck in a collective; more where another rank has said
why it could not load, since rank 0 is about to find that out by itself."""
QUIET_SECONDS = 2.5
"""Of a rank that says nothing for so long it is told, where a step has taken too long."""


@dataclass(slots=True)
class Seat:
    """What is known of another rank."""

    rank: int
    connection: Connection
    exit_code: Callable[[], int | None]
    is_stopped: Callable[[], bool]
    """Asks the kernel whether its process was stopped."""
    stage: Stage = field(default_factory=lambda: Stage("starting", None))
    has_arrived: bool = False
    is_ready: bool = False
    heard: float = field(default_factory=time.monotonic)
    failure: Failed | None = None

    @property
    def where(self) -> str:
        """The rank and what it does, for a message."""
        return f"rank {self.rank} ({self.stage.stage})"


class Watch:
    """Watches the other ranks from a thread of its own, from `start` until `close`."""

    def __init__(self, seats: list[Seat], kill: Callable[[], None], leave: Callable[[EngineDeadError], None]) -> None:
        """`kill` ends all other ranks at once; `leave` this process, where it has not ended by itself then."""
        self._seats, self._kill, self._leave = seats, kill, leave
        self.step_seconds = float("inf")
        """A step that takes more is stuck."""
        self._stage: str | None = "starting"
        """What rank 0 does while it loads; None once it has."""
        self._news = time.monotonic()
        """When a rank last came further with loading."""
        self._began: list[float] = []
        """When the steps began that are under way, the oldest first."""
        self._is_closing = False
        self.failure: EngineDeadError | None = None
        """Why all end, once they do."""
        self._thread = threading.Thread(target=self._run, name="watch of ranks", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """The other ranks are about to be ended: whatever becomes of them is no failure."""
        self._is_closing = True
        if self._thread.ident is not None:
            self._thread.join(timeout=2 * LOOK_SECONDS)

    def load(self, stage: str | None) -> None:
        """Rank 0 has come to another stage of loading; None: it has loaded. Raises EngineDeadError as `check` does."""
        self._stage, self._news = stage, time.monotonic()
        self.check()

    def begin_step(self) -> float:
        """A step begins; the moment, for `end_step`."""
        now = time.monotonic()
        self._began.append(now)
        return now

    def end_step(self, began: float) -> None:
        """The step that began then is over."""
        if began in self._began:
            self._began.remove(began)

    def meet(self, progress: Progress) -> None:
        """Wait until all others have arrived, and tell how far the last of them is. Raises EngineDeadError."""
        while late := [seat for seat in self._seats if not seat.has_arrived]:
            self.check()
            progress(f"waiting for rank {late[0].rank}: {late[0].stage.stage}", late[0].stage.fraction)
            time.sleep(LOOK_SECONDS)

    def check(self) -> None:
        """Raise EngineDeadError if all are about to end."""
        if self.failure is not None:
            raise self.failure

    def explain(self, error: Exception) -> EngineDeadError:
        """Why something that all ranks do together has failed: because one of them ended, or else by itself."""
        deadline = time.monotonic() + GRACE_SECONDS
        while self.failure is None and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS / 10)  # the end of a process is known a moment after its connections'
        if self.failure is None:
            logger.error("rank 0 failed", exc_info=error)
            self._end(EngineDeadError(f"rank 0 failed: {type(error).__name__}"))
        assert self.failure is not None
        return self.failure

    def _run(self) -> None:
        try:
            self._look()
        except Exception as error:
            logger.exception("ranks can no longer be watched")
            self._end(EngineDeadError(f"ranks can no longer be watched: {type(error).__name__}"))
        self._see_to_the_end()

    def _look(self) -> None:
        open_seats = list(self._seats)
        while not self._is_closing and self.failure is None:
            for connection in wait([seat.connection for seat in open_seats], LOOK_SECONDS):
                seat = next(seat for seat in open_seats if seat.connection is connection)
                if not self._listen(seat):
                    open_seats.remove(seat)
            if not open_seats:
                time.sleep(LOOK_SECONDS)
            if (failure := self._find_failure()) is not None and not self._is_closing:
                self._end(failure)

    def _listen(self, seat: Seat) -> bool:
        """Take what a rank says; False once it says nothing any more."""
        try:
            while seat.connection.poll():
                report = decode_report(seat.connection.recv_bytes())
                seat.heard = time.monotonic()
                match report:
                    case Stage():
                        seat.stage = report
                        self._news = time.monotonic()
                    case Arrived():
                        seat.has_arrived = True
                    case Ready():
                        seat.is_ready = True
                        seat.stage = Stage("serving", None)
                    case Failed():
                        seat.failure = report
                    case Alive():
                        pass
        except (EOFError, OSError):
            return False
        return True

    def _find_failure(self) -> EngineDeadError | None:
        now = time.monotonic()
        for seat in self._seats:
            code = seat.exit_code()
            if code is not None:
                self._listen(seat)  # what it said last
            if seat.failure is not None:
                where = "" if seat.failure.is_everybodys else f"{seat.where}: "
                return EngineDeadError(where + seat.failure.message, hint=seat.failure.hint)
            if code is not None:
                return EngineDeadError(f"{seat.where} {describe_exit(code)}")
            silent, silence = now - seat.heard, silence_of(self.step_seconds)
            if silent > silence and not seat.is_ready and not seat.is_stopped():
                silence = LOAD_SILENCE_SECONDS
            if silent > silence:
                return EngineDeadError(f"{seat.where} said nothing for {silence:g} s")
        if self._stage is not None and now - self._news > LOAD_SECONDS:
            return EngineDeadError(
                f"rank 0 ({self._stage}) came no further for {LOAD_SECONDS:g} s: the ranks wait for each other",
                hint="if they never get beyond their start, GPUs may not reach each other's memory: "
                "set NCCL_P2P_DISABLE=1, and NCCL_DEBUG=INFO to see more",
            )
        if any(now - began > self.step_seconds for began in self._began[:1]):
            quiet = [seat.where for seat in self._seats if now - seat.heard > QUIET_SECONDS]
            why = f"{' and '.join(quiet)} says nothing" if quiet else "the ranks wait for each other"
            return EngineDeadError(f"a step took more than {self.step_seconds:g} s: {why}")
        return None

    def _end(self, failure: EngineDeadError) -> None:
        """End all others, and in a moment this process."""
        logger.error("all ranks end: %s", failure)
        self.failure = failure
        self._kill()

    def _see_to_the_end(self) -> None:
        """End this process, unless it does so by itself soon."""
        if self.failure is None:
            return
        is_told = any(seat.failure is not None and not seat.is_ready for seat in self._seats)
        deadline = time.monotonic() + (LOAD_GRACE_SECONDS if is_told else GRACE_SECONDS)
        while time.monotonic() < deadline:
            if self._is_closing:
                return
            time.sleep(LOOK_SECONDS / 10)
        self._leave(self.failure)
