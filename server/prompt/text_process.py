"""One process for long texts, and the bounds it is held to; `server.routes.text_worker` is what runs in it."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec

from engine.frames import HEADER, MAX_FRAME_BYTES, frame_of
from engine.lifetime import child_environment
from server.prompt.plan import PromptPlan
from server.prompt.text_messages import (
    Answered,
    BodyRead,
    Failed,
    MakePrompts,
    PromptMade,
    ReadBody,
    Reply,
    TextRoute,
    decode_reply,
)
from server.protocol.errors import DRAINING, ApiError, internal_error, overloaded

TEXT_COMMAND = (sys.executable, "-P", "-m", "server.routes.text_worker")
ENDING_SECONDS = 5.0
"""What a process that has closed its output gets to end by itself."""
WAIT_FACTOR = 10
"""So many times its own time a process may take by the clock on the wall, where others want the processors too."""
PIECE_BYTES = 256 * 1024
RETRY_SECONDS = 5
OUT_OF_MEMORY = 3
"""Exit code of a process to which its limit was refused."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPolicy:
    """Sizes are of request bodies."""

    command: tuple[str, ...] = TEXT_COMMAND
    here_bytes: int = 32 * 1024
    """Up to this size a body is handled in the API process."""
    large_bytes: int = 1024 * 1024
    """Beyond this a body waits behind others, and the process that handles it yields to all and then ends."""
    processes: int = 2
    cpu_seconds: int = 20
    """For one body, of the process's own time."""
    memory_bytes: int = 3 * 1024**3
    """Address space of a process."""
    niceness: tuple[int, int] = (5, 10)
    """Of processes for ordinary bodies and for large ones: the steps of models and the streams of others go first."""
    wait_seconds: float = 60.0
    """For a process that is free."""
    idle_seconds: float = 300.0
    """After this a process without work ends."""


class TextProcess:
    """One process. A body is `read`, then what its route asks for is `make`d, or another body comes."""

    def __init__(self, process: asyncio.subprocess.Process, policy: TextPolicy) -> None:
        """Use `start`."""
        self._process = process
        self._policy = policy
        self._is_stopped = False
        self.is_ready = True
        """Whether it waits for a question."""

    @classmethod
    async def start(cls, policy: TextPolicy, *, is_large: bool) -> "TextProcess":
        """Start one. Raises `OSError` if that cannot be."""
        process = await asyncio.create_subprocess_exec(
            *policy.command,
            str(policy.memory_bytes),
            str(policy.cpu_seconds),
            str(policy.niceness[is_large]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=child_environment(),
            process_group=0,
        )
        return cls(process, policy)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    async def read(self, route: TextRoute, body: bytes, *, ignore_unknown: bool = False) -> BodyRead:
        """Have a body read and checked. Raises `ApiError`."""
        async with self._conversation():
            await self._write(frame_of(ReadBody(route, ignore_unknown)) + HEADER.pack(len(body)))
            await self._write(body)
            reply = await self._reply()
            assert isinstance(reply, BodyRead), "each question has its answers"
            return reply

    async def make(self, question: MakePrompts) -> tuple[list[PromptPlan], Answered]:
        """The plans of the request that was read, or its whole answer. Raises `ApiError`."""
        plans: list[PromptPlan] = []
        async with self._conversation():
            await self._write(frame_of(question))
            while not isinstance(reply := await self._reply(), Answered):
                assert isinstance(reply, PromptMade), "each question has its answers"
                plans.append(reply.plan)
            return plans, reply

    def stop(self) -> None:
        """Kill the process; the request that has it is told that the server ends."""
        self._is_stopped = True
        self._kill()

    async def end(self) -> None:
        """Kill the process, which nobody asks any more, and wait for its end."""
        self._kill()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        with contextlib.suppress(OSError):
            await self._process.stdin.wait_closed()
        await self._process.stdout.read()  # to its end, which closes it
        await self._process.wait()

    @contextlib.asynccontextmanager
    async def _conversation(self) -> AsyncIterator[None]:
        """A question and its answers. A process that has not answered to the end is of no more use."""
        self.is_ready = False
        try:
            async with asyncio.timeout(WAIT_FACTOR * self._policy.cpu_seconds):
                yield
        except TimeoutError as error:
            raise self._died(-signal.SIGXCPU) from error
        except (OSError, asyncio.IncompleteReadError, msgspec.DecodeError) as error:
            raise self._died(await self._exit_code()) from error
        except ApiError:
            self.is_ready = True
            raise
        self.is_ready = True

    async def _exit_code(self) -> int:
        """How it ended, for which one that is ending gets a moment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ENDING_SECONDS):
                return await self._process.wait()
        self._kill()
        return await self._process.wait()

    def _kill(self) -> None:
        # Not by the process object: that would look whether it has ended, and so take its exit code from asyncio.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)

    def _died(self, code: int) -> ApiError:
        if self._is_stopped:
            return shutting_down()
        if code == -signal.SIGXCPU:
            why = f"more than {self._policy.cpu_seconds} seconds"
        elif code in (OUT_OF_MEMORY, -signal.SIGKILL, -signal.SIGABRT):
            why = f"more than {self._policy.memory_bytes // 2**20} MiB of memory"
        else:
            logger.error("a process for long texts has ended with exit code %d", code)
            return internal_error()
        return ApiError(400, f"Reading this request takes {why}; send a shorter one", code="request_too_complex")

    async def _write(self, data: bytes) -> None:
        stream = self._process.stdin
        assert stream is not None
        for begin in range(0, len(data), PIECE_BYTES):
            stream.write(memoryview(data)[begin : begin + PIECE_BYTES])
            await stream.drain()

    async def _reply(self) -> Reply:
        stream = self._process.stdout
        assert stream is not None
        (size,) = HEADER.unpack(await stream.readexactly(HEADER.size))
        if size > MAX_FRAME_BYTES:
            raise msgspec.DecodeError("the frame is too long")
        reply = decode_reply(await stream.readexactly(size))
        if isinstance(reply, Failed):
            raise reply.error()
        return reply


def shutting_down() -> ApiError:
    """503, for requests that are not answered because the server ends."""
    return overloaded("The server is shutting down", retry_after=RETRY_SECONDS, reason=DRAINING)
