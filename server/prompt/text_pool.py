"""Processes for long texts.

Reading, rendering and tokenising megabytes holds the interpreter's lock for seconds, and the memory it took stays with
the process that did it. So what is long is done elsewhere, by processes that are few, bounded in time and memory, that
can be killed, and that end: after each large body, and when there is nothing to do. Ordinary bodies overtake
large ones, which never have all the processes.
"""

import asyncio
import contextlib
import heapq
import itertools
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
from server.protocol.errors import ApiError, overloaded

TEXT_COMMAND = (sys.executable, "-P", "-m", "server.routes.text_worker")
WAIT_FACTOR = 10
"""So many times its own time a process may take by the clock on the wall, where others want the processors too."""
PIECE_BYTES = 256 * 1024
RETRY_SECONDS = 5


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

    async def make(self, question: MakePrompts) -> tuple[list[PromptPlan], bytes]:
        """The plans of the request that was read, or the JSON of its whole answer. Raises `ApiError`."""
        plans: list[PromptPlan] = []
        async with self._conversation():
            await self._write(frame_of(question))
            while not isinstance(reply := await self._reply(), Answered):
                assert isinstance(reply, PromptMade), "each question has its answers"
                plans.append(reply.plan)
            return plans, reply.content

    async def end(self) -> None:
        """Kill the process and wait for its end."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
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
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        return await self._process.wait()

    def _died(self, code: int) -> ApiError:
        if code == -signal.SIGXCPU:
            why = f"more than {self._policy.cpu_seconds} seconds"
        else:
            why = f"more than {self._policy.memory_bytes // 2**20} MiB of memory"
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


class TextPool:
    """The processes of one server. Nothing is started before it is needed."""

    def __init__(self, policy: TextPolicy | None = None) -> None:
        self.policy = policy or TextPolicy()
        self._idle: list[TextProcess] = []
        self._timers: dict[TextProcess, asyncio.TimerHandle] = {}
        self._all: set[TextProcess] = set()
        self._waiting: list[tuple[bool, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._busy = {False: 0, True: 0}
        """By whether the body is large."""
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def num_processes(self) -> int:
        """How many there are, busy or not."""
        return len(self._all)

    @contextlib.asynccontextmanager
    async def process(self, num_bytes: int) -> AsyncIterator[TextProcess]:
        """A process for a body of this size, for as long as the `with` block takes.

        Raises `ApiError` 503 where none is free in time or none can be started.
        """
        is_large = num_bytes > self.policy.large_bytes
        await self._wait_for_turn(is_large)
        process: TextProcess | None = None
        try:
            process = await self._take(is_large)
            yield process
        finally:
            if process is not None:
                self._give_back(process, is_large)
            self._busy[is_large] -= 1
            self._wake()

    async def close(self) -> None:
        """End all processes."""
        for timer in self._timers.values():
            timer.cancel()
        self._idle.clear()
        await asyncio.gather(*(self._end(process) for process in list(self._all)), *self._ending)

    async def _wait_for_turn(self, is_large: bool) -> None:
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (is_large, next(self._numbers), turn))
        self._wake()
        try:
            async with asyncio.timeout(self.policy.wait_seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # its turn came at the same moment
                self._busy[is_large] -= 1
            turn.cancel()
            self._wake()
            if isinstance(error, TimeoutError):
                raise overloaded("Too many large requests are being read", retry_after=RETRY_SECONDS) from None
            raise

    def _wake(self) -> None:
        """Let those whose turn has come go on."""
        large = max(1, self.policy.processes - 1)
        while self._waiting and sum(self._busy.values()) < self.policy.processes:
            is_large, _, turn = self._waiting[0]
            if is_large and self._busy[True] >= large and not turn.done():
                return
            heapq.heappop(self._waiting)
            if not turn.done():
                self._busy[is_large] += 1
                turn.set_result(None)

    async def _take(self, is_large: bool) -> TextProcess:
        if self._idle and not is_large:
            process = self._idle.pop()
            self._timers.pop(process).cancel()
            return process
        if self._idle and len(self._idle) + sum(self._busy.values()) > self.policy.processes:
            self._timers[self._idle[-1]].cancel()
            self._end_idle(self._idle[-1])
        try:
            process = await TextProcess.start(self.policy, is_large=is_large)
        except OSError as error:
            raise overloaded("No process can be started for this request", retry_after=RETRY_SECONDS) from error
        self._all.add(process)
        return process

    def _give_back(self, process: TextProcess, is_large: bool) -> None:
        """Keep a process for the next body, if it is fit for one; synchronous, so that no cancellation can stop it."""
        loop = asyncio.get_running_loop()
        if is_large or not process.is_ready or process not in self._all:
            self._end_soon(process)
            return
        self._idle.append(process)
        self._timers[process] = loop.call_later(self.policy.idle_seconds, self._end_idle, process)

    def _end_idle(self, process: TextProcess) -> None:
        self._idle.remove(process)
        del self._timers[process]
        self._end_soon(process)

    def _end_soon(self, process: TextProcess) -> None:
        task = asyncio.get_running_loop().create_task(self._end(process), name=f"end text process {process.pid}")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end(self, process: TextProcess) -> None:
        self._all.discard(process)
        await process.end()
