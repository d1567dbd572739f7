"""The process of a rank that is not 0: `python -m engine.ranks.follower FD`, told what to do through that descriptor.

It loads its part of the model as rank 0 loads its own, then computes each step that it is told of. It decides nothing:
what ranks could see differently, rank 0 says, or they agree on it.
"""

import gc
import logging
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cache import Progress
from engine.errors import ConfigError, HeadraceError
from engine.lifetime import die_with_parent
from engine.ranks.messages import (
    Alive,
    Arrived,
    Begin,
    BringBack,
    End,
    Failed,
    Forward,
    PutAway,
    Ready,
    Report,
    Stage,
    Wipe,
    decode_order,
    encode,
)

if TYPE_CHECKING:
    from engine.execution.model_runner import ModelRunner

logger = logging.getLogger(__name__)

ALIVE_SECONDS = 1.0
GRACE_SECONDS = 0.4
"""After a failure: if it is that another rank has ended, rank 0 says so and ends this one in the meantime."""


class Leader:
    """Rank 0, as another rank has it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def report(self, report: Report) -> None:
        """Say something, from any thread. Raises OSError where rank 0 is gone."""
        with self._lock:
            self._connection.send_bytes(encode(report))

    def meet(self, progress: Progress) -> None:
        """See `Ranks.meet`: rank 0 waits, and the collective that comes next waits for it."""
        self.report(Arrived())

    def listen(self) -> bytes:
        """The next order. Raises EOFError where rank 0 is gone."""
        return self._connection.recv_bytes()

    def speak_up(self) -> None:
        """Say once a second that this process runs, until rank 0 is gone."""
        try:
            while True:
                self.report(Alive())
                time.sleep(ALIVE_SECONDS)
        except OSError:
            pass


def build(begin: Begin, leader: Leader) -> "ModelRunner":
    """Load this rank's part of the model. Raises HeadraceError."""
    leader.report(Stage("starting", None))
    from engine.device.device import select_device  # imports torch, which takes seconds
    from engine.device.ranks import join
    from engine.execution.model_runner import ModelRunner

    config = begin.config
    device = select_device(config.device, begin.rank)
    ranks = join(Path(begin.directory), begin.rank, config.tensor_parallel, device, leader.meet)
    return ModelRunner(config, lambda stage, fraction: leader.report(Stage(stage, fraction)), ranks)


def follow(runner: "ModelRunner", leader: Leader) -> None:
    """Do what rank 0 says, until it says that it is the end, or is gone (EOFError)."""
    from engine.ranks.steps import host_of

    gc.collect()
    gc.freeze()  # as rank 0's process does: pauses of one rank are everybody's
    leader.report(Ready())
    while True:
        match decode_order(leader.listen()):
            case Forward() as step:
                host = host_of(step)
                runner.builder.follow(host.changes)
                runner.run(host)
            case Wipe(blocks=blocks, block_size=block_size):
                runner.wipe_blocks(blocks, block_size)
            case PutAway():
                runner.sleep()
            case BringBack():
                runner.wake()
            case End():
                return


def main() -> int:
    """Entry point of the process."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    leader = Leader(Connection(int(sys.argv[1])))
    threading.Thread(target=leader.speak_up, name="alive", daemon=True).start()
    begin = decode_order(leader.listen())
    assert isinstance(begin, Begin), "who a rank is comes first"
    logging.basicConfig(
        level=logging.WARNING, format=f"rank {begin.rank}: %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    try:
        follow(build(begin, leader), leader)
    except (EOFError, BrokenPipeError):
        return 1
    except HeadraceError as error:
        leader.report(Failed(error.message, error.hint, is_everybodys=isinstance(error, ConfigError)))
        return 1
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's is of its own kind
            leader.report(Failed("its device has not enough memory", "Choose a smaller model, or more ranks."))
            return 1
        time.sleep(GRACE_SECONDS)
        logger.exception("it cannot go on")
        leader.report(Failed(f"{type(error).__name__}, see the log"))
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # what waits for other ranks in destructors would wait for ever
