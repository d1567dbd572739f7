"""The processes of the other ranks: started before rank 0 reads anything, told what to do, ended with it.

They are children of rank 0 in its process group, so whatever ends that ends them. Each is told through a pair of
sockets, without a name that another process could find; the file by which they meet for collectives is in a directory
that only this user can enter, and goes with the team.
"""

import contextlib
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from engine.cache import Progress
from engine.config import EngineConfig
from engine.errors import EngineDeadError
from engine.lifetime import child_environment, is_stopped
from engine.ranks.messages import Begin, End, Order, encode
from engine.ranks.watch import Seat, Watch

COMMAND = (sys.executable, "-P", "-m", "engine.ranks.follower")
END_SECONDS = 2.0
"""What ranks get to end by themselves."""
CUDA_STEP_SECONDS, CPU_STEP_SECONDS = 60.0, 100.0
"""What a step takes at most, where the configuration does not say it. Whoever supervises the engine waits for 120 s."""
Leave = Callable[[EngineDeadError], None]


class Team:
    """The other ranks, as rank 0 has them. Its methods are called by one thread."""

    def __init__(self, config: EngineConfig, directory: Path) -> None:
        """Use `start`."""
        self.directory = directory
        self._members: list[tuple[subprocess.Popen[bytes], Connection]] = []
        self._config = config
        self.watch = Watch([], self.kill, lambda failure: None)

    @classmethod
    def start(cls, config: EngineConfig, parent: Path | None = None, leave: Leave = lambda failure: None) -> "Team":
        """Start the processes. `parent` is a directory of this user's alone; None: where temporary files are.

        `leave` ends this process, which may be stuck, when one of the others has ended.
        """
        team = cls(config, Path(tempfile.mkdtemp(prefix="ranks-", dir=parent)))
        seats = [team._start(rank) for rank in range(1, config.tensor_parallel)]

        def left(failure: EngineDeadError) -> None:
            shutil.rmtree(team.directory, ignore_errors=True)
            leave(failure)

        team.watch = Watch(seats, team.kill, left)
        team.watch.start()
        return team

    @property
    def size(self) -> int:
        """Ranks, rank 0 among them."""
        return self._config.tensor_parallel

    def tell(self, order: Order) -> None:
        """Tell all ranks to do something. Raises EngineDeadError where one is gone."""
        data = encode(order)
        try:
            for _, connection in self._members:
                connection.send_bytes(data)
        except OSError as error:
            raise self.watch.explain(error) from error

    def told(self, progress: Progress) -> Progress:
        """The same, for rank 0: who is told how far it is also hears when another rank has ended (EngineDeadError)."""

        def told(stage: str, fraction: float | None) -> None:
            self.watch.load(stage)
            progress(stage, fraction)

        return told

    def loaded(self, *, is_cpu: bool) -> None:
        """Rank 0 has loaded its part: from now on steps have their time."""
        self.watch.step_seconds = self._config.step_timeout or (CPU_STEP_SECONDS if is_cpu else CUDA_STEP_SECONDS)
        self.watch.load(None)

    def meet(self, progress: Progress) -> None:
        """Wait for the others: see `Ranks.meet`."""
        self.watch.meet(progress)

    def explain(self, error: Exception) -> EngineDeadError:
        """Why something that all ranks do together has failed. All end then."""
        return self.watch.explain(error)

    def kill(self) -> None:
        """End the processes at once."""
        for process, _ in self._members:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    def close(self) -> None:
        """End the processes, and what was made for them."""
        self.watch.close()
        with contextlib.suppress(EngineDeadError):
            self.tell(End())
        for process, connection in self._members:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            process.kill()
            process.wait()
            connection.close()
        self._members.clear()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _start(self, rank: int) -> Seat:
        ours, theirs = multiprocessing.Pipe()
        process = subprocess.Popen(
            [*COMMAND, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=child_environment(),
        )
        theirs.close()
        self._members.append((process, ours))
        ours.send_bytes(encode(Begin(self._config, rank, str(self.directory))))
        return Seat(rank, ours, process.poll, partial(is_stopped, process.pid))
