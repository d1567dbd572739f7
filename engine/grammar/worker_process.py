"""The parent's side of `engine.grammar.worker`: one process, asked, watched, and killed when it takes too long."""

import logging
import os
import select
import subprocess
import sys
from collections.abc import Callable

import msgspec
import psutil

from engine.config import ConstraintBackend
from engine.constraint import Constraint
from engine.frames import read_frame, write_message
from engine.grammar.worker import Answer, Job, Setup

logger = logging.getLogger(__name__)

WAIT_FACTOR = 5
"""So many deadlines are waited for at most, by the clock on the wall: other constraints wait meanwhile."""
START_SECONDS = 60.0
SLOW_SECONDS = 0.1
"""A job that takes longer, of the process's own time, goes on at the lowest priority."""
LOWEST_PRIORITY = 19


class WorkerProcess:
    """A process that compiles, started when it is needed. For one thread."""

    def __init__(
        self,
        setup: Setup,
        backend: ConstraintBackend,
        deadline: float,
        clock: Callable[[], float],
        on_slow: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_slow` is called once for each job that turns out to take long."""
        self._setup = setup
        self._backend = backend
        self._deadline = deadline
        self._clock = clock
        self._on_slow = on_slow
        self._worker: subprocess.Popen[bytes] | None = None
        self._is_well = False
        """Whether it started well."""

    @property
    def pid(self) -> int | None:
        """Process id, None while there is no process."""
        return self._worker.pid if self._worker is not None else None

    def ask(self, constraint: Constraint) -> Answer:
        """Have the process compile; kill it if it does not answer in its time."""
        job = Job(constraint, self._backend)
        answer = self.exchange(job) or self.exchange(job)  # it may have died of something else
        if (answer is None or answer.is_late) and constraint.may_relax:
            answer = self.exchange(Job(constraint, self._backend, rough=True))
        return answer or Answer(error=f"{constraint.param} is too complex: compiling it needs too much memory")

    def exchange(self, job: Job) -> Answer | None:
        """The process's answer to a job, or that it took too long; None if it died. Then it is gone."""
        self.start()
        worker = self._worker
        assert worker is not None and worker.stdin is not None and worker.stdout is not None
        try:
            write_message(worker.stdin, job)
        except OSError:
            self.kill()
            return None
        began, used, slow = self._clock(), cpu_seconds(worker.pid), False
        while not select.select([worker.stdout], [], [], SLOW_SECONDS)[0]:
            spent = cpu_seconds(worker.pid) - used
            if spent >= self._deadline or self._clock() - began >= WAIT_FACTOR * self._deadline:
                self.kill()
                late = f"compiling it takes more than {self._deadline:g} seconds"
                return Answer(error=f"{job.constraint.param} is too complex: {late}", is_late=True)
            if spent >= SLOW_SECONDS and not slow:
                # From here on it yields to the model. Only a new process can be given its rank back.
                slow = True
                os.setpriority(os.PRIO_PROCESS, worker.pid, LOWEST_PRIORITY)
                self._on_slow()
        answer = self._read(0)
        if slow or answer is None:
            self.kill()
        return answer

    def start(self) -> None:
        """Start the process, unless there is one."""
        if self._worker is not None:
            return
        command = [sys.executable, "-m", "engine.grammar.worker"]
        self._worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=-1)
        assert self._worker.stdin is not None
        try:
            write_message(self._worker.stdin, self._setup)
        except OSError:
            logger.warning("the process that compiles constraints has not started")
        answer = self._read(START_SECONDS)
        self._is_well = answer is not None and answer.error is None
        if not self._is_well:
            logger.warning("the process that compiles constraints has not started")

    def revive(self) -> None:
        """Start another process where the one that was well has ended while nobody asked it."""
        if self._worker is not None and self._is_well and self._worker.poll() is not None:
            logger.warning("the process that compiles constraints has ended: another is started")
            self.kill()
            self.start()

    def kill(self) -> None:
        """End the process, if there is one."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
            worker.communicate()

    def _read(self, seconds: float) -> Answer | None:
        """The process's answer, None if it has not begun within `seconds` or the process ended."""
        worker = self._worker
        assert worker is not None and worker.stdout is not None
        ready, _, _ = select.select([worker.stdout], [], [], seconds)
        frame = read_frame(worker.stdout) if ready else None
        return None if frame is None else msgspec.msgpack.decode(frame, type=Answer)


def cpu_seconds(pid: int) -> float:
    """What a process has had of the processors; 0 if it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
