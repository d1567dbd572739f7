"""The processes that look at images: few, bounded, replaced when they die, ended when there is nothing to do."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from dataclasses import dataclass

import msgspec

from engine.frames import HEADER, MAX_FRAME_BYTES, frame_of
from engine.lifetime import PARENT_VARIABLE, child_environment
from server.images.messages import ImageFailed, ImageRefused, ImageReply, PreparedImage, PrepareImage, decode_reply
from server.protocol.errors import internal_error, overloaded

logger = logging.getLogger(__name__)

WORKER_COMMAND = (sys.executable, "-P", "-m", "server.images.worker")
RETRY_SECONDS = 5
_KEPT_VARIABLES = (
    "PATH", "PYTHONPATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "RUST_BACKTRACE", PARENT_VARIABLE
)  # fmt: skip
"""What of our environment decoders may see: no keys and no tokens."""


class ImageError(Exception):
    """Why an image cannot be shown to the model, in words for the one who sent it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePoolPolicy:
    """Bounds of the processes."""

    command: tuple[str, ...] = WORKER_COMMAND
    processes: int = 2
    cpu_seconds: int = 10
    """For one image, of the process's own time; the first of a process has as many again for its imports."""
    wall_seconds: float = 60.0
    """For one image by the clock, where others want the processors too."""
    memory_bytes: int = 3 * 1024**3
    """Address space of a process."""
    wait_seconds: float = 60.0
    """For a process that is free."""
    idle_seconds: float = 300.0


class ImagePool:
    """The processes of one server. Nothing is started before it is needed; for one event loop."""

    def __init__(self, policy: ImagePoolPolicy | None = None) -> None:
        self._policy = policy or ImagePoolPolicy()
        self._turns = asyncio.Semaphore(self._policy.processes)
        self._idle: list[asyncio.subprocess.Process] = []
        self._timers: dict[asyncio.subprocess.Process, asyncio.TimerHandle] = {}
        self._all: set[asyncio.subprocess.Process] = set()

    @property
    def pids(self) -> list[int]:
        """Of all processes, busy or not."""
        return [process.pid for process in self._all]

    async def prepare(self, question: PrepareImage, content: bytes) -> PreparedImage:
        """Have an image decoded and cut.

        Raises `ImageError` for what is wrong with it, and `ApiError`: 503 if no process is free in time, 500 where the
        model's own files do not let it be cut.
        """
        try:
            async with asyncio.timeout(self._policy.wait_seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise overloaded(
                "Too many images are being looked at", retry_after=RETRY_SECONDS, reason="images"
            ) from None
        process: asyncio.subprocess.Process | None = None
        try:
            process = await self._take()
            reply = await self._ask(process, question, content)
        except BaseException:
            # Whatever it was, an answer may be under way that nobody reads.
            if process is not None:
                self._kill(process)
            raise
        else:
            self._keep(process)
        finally:
            self._turns.release()
        if isinstance(reply, ImageRefused):
            raise ImageError(reply.message)
        if isinstance(reply, ImageFailed):
            logger.error("images cannot be cut as %s has it: %s", question.model_dir, reply.message)
            raise internal_error()
        return reply

    async def close(self) -> None:
        """End all processes, and wait for their ends."""
        processes = list(self._all)
        for process in processes:
            self._kill(process)
        await asyncio.gather(*(_ended(process) for process in processes))

    async def _take(self) -> asyncio.subprocess.Process:
        if self._idle:
            process = self._idle.pop()
            self._timers.pop(process).cancel()
            return process
        policy, environment = self._policy, child_environment()
        try:
            process = await asyncio.create_subprocess_exec(
                *policy.command,
                str(policy.memory_bytes),
                str(policy.cpu_seconds),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={name: environment[name] for name in _KEPT_VARIABLES if name in environment},
                process_group=0,
            )
        except OSError as error:
            raise overloaded(
                "No process can be started for images", retry_after=RETRY_SECONDS, reason="no_process"
            ) from error
        self._all.add(process)
        return process

    async def _ask(self, process: asyncio.subprocess.Process, question: PrepareImage, content: bytes) -> ImageReply:
        assert process.stdin is not None and process.stdout is not None
        try:
            async with asyncio.timeout(self._policy.wall_seconds):
                process.stdin.write(frame_of(question) + HEADER.pack(len(content)))
                process.stdin.write(content)
                await process.stdin.drain()
                (size,) = HEADER.unpack(await process.stdout.readexactly(HEADER.size))
                if size > MAX_FRAME_BYTES:
                    raise msgspec.DecodeError("the frame is too long")
                return decode_reply.decode(await process.stdout.readexactly(size))
        except TimeoutError:
            raise ImageError("it takes too long to decode") from None
        except (OSError, asyncio.IncompleteReadError, msgspec.DecodeError):
            code = await process.wait()
            too_long = code == -signal.SIGXCPU
            raise ImageError(f"it takes too {'long' if too_long else 'much memory'} to decode") from None

    def _keep(self, process: asyncio.subprocess.Process) -> None:
        loop = asyncio.get_running_loop()
        self._idle.append(process)
        self._timers[process] = loop.call_later(self._policy.idle_seconds, self._end_idle, process)

    def _end_idle(self, process: asyncio.subprocess.Process) -> None:
        self._idle.remove(process)
        del self._timers[process]
        self._kill(process)

    def _kill(self, process: asyncio.subprocess.Process) -> None:
        self._all.discard(process)
        if (timer := self._timers.pop(process, None)) is not None:
            timer.cancel()
            self._idle.remove(process)
        # Not by the process object: that would look whether it has ended, and so take its exit code from asyncio.
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        assert process.stdin is not None
        process.stdin.close()


async def _ended(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(OSError):
        await process.stdin.wait_closed()
    await process.stdout.read()  # to its end, which closes it
    await process.wait()
