"""One run of one engine process, from its start until it has been reaped."""

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import sys
from collections import deque
from pathlib import Path

from engine.client import EngineClient
from engine.config import EngineConfig
from engine.errors import EngineDeadError, EngineStoppedError
from engine.lifetime import child_environment
from engine.messages import encode
from server.telemetry.logs import with_fields

logger = logging.getLogger(__name__)

ENGINE_COMMAND = (sys.executable, "-P", "-m", "engine.process")
"""`-P` keeps the working directory out of the module path, where a stray `random.py` would shadow the library's."""

MAX_LINE_BYTES = 8192
LAST_WORDS = 20
TERMINATE_SECONDS = 2.0
FINAL_FRAMES_SECONDS = 0.1

_endpoint_numbers = itertools.count(1)


class EngineProcess:
    """A running engine process and the client that talks to it.

    The process has a group of its own, so that Ctrl-C in a terminal reaches the server alone and it decides how the
    engine ends. Whatever the engine prints goes to this process's log, line by line under the model's name.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process, client: EngineClient) -> None:
        """Use `spawn`."""
        self.name = name
        self.client = client
        self.last_words: deque[str] = deque(maxlen=LAST_WORDS)
        self._process = process
        self._pump = asyncio.create_task(self._pump_output(), name=f"engine-log {name}")
        self._exit = asyncio.create_task(self._watch_exit(), name=f"engine-exit {name}")

    @classmethod
    async def spawn(cls, config: EngineConfig, directory: Path, command: tuple[str, ...]) -> "EngineProcess":
        """Start `command ENDPOINT` with the configuration on its standard input.

        `directory` holds the socket and must be one that only this user can enter. Raises `OSError` if the program
        cannot be started.
        """
        client = EngineClient(f"ipc://{directory}/{next(_endpoint_numbers)}.sock")
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                client.endpoint,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=_environment(),
                process_group=0,
            )
        except BaseException:
            await client.close()
            raise
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            process.stdin.write(encode(config))
            await process.stdin.drain()
            process.stdin.close()
        return cls(config.name, process, client)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait for the end of the process; its exit code, negative for a signal."""
        return await asyncio.shield(self._exit)

    async def stop(self, grace: float) -> None:
        """End the process: ask it, then SIGTERM, then SIGKILL. Every stream still open fails at once."""
        if self.client.info is not None:
            self.client.shutdown()
            self.client.mark_dead(EngineStoppedError("the server is shutting down"))
            await self._wait_at_most(grace)
        self._signal(signal.SIGTERM)
        await self._wait_at_most(TERMINATE_SECONDS)
        self.kill()
        await self.wait()
        await self._close()

    def kill(self) -> None:
        """SIGKILL the process and everything in its group."""
        self._signal(signal.SIGKILL)

    def abort(self) -> None:
        """SIGABRT, on which the engine's fault handler prints where every thread stands."""
        self._signal(signal.SIGABRT)

    async def _close(self) -> None:
        await asyncio.wait({self._pump}, timeout=0.5)  # a grandchild may hold the pipe open
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)
        await self.client.close()

    async def _wait_at_most(self, seconds: float) -> None:
        await asyncio.wait({self._exit}, timeout=seconds)

    def _signal(self, number: signal.Signals) -> None:
        if self._exit.done():
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    async def _watch_exit(self) -> int:
        code = await self._process.wait()
        # What the engine said last may still be on its way through the socket.
        await asyncio.sleep(FINAL_FRAMES_SECONDS)
        self.client.mark_dead(EngineDeadError(f"the engine of model {self.name} {describe_exit(code)}"))
        return code

    async def _pump_output(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        rest = b""
        while chunk := await stream.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._log_line(line)
            if len(rest) > MAX_LINE_BYTES:
                self._log_line(rest)
                rest = b""
        self._log_line(rest)

    def _log_line(self, line: bytes) -> None:
        text = line[:MAX_LINE_BYTES].decode("utf-8", "replace").rstrip()
        if text:
            self.last_words.append(text)
            logger.info("[%s] %s", self.name, text, extra=with_fields(model=self.name))


def describe_exit(code: int) -> str:
    """How a process ended, as the end of a sentence about it."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}" + (", perhaps for want of memory" if -code == signal.SIGKILL else "")


def _environment() -> dict[str, str]:
    return {
        **child_environment(),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",  # a crash, or our SIGABRT, prints where every thread stood
    }
