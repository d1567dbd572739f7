"""One run of one engine process, from its start until it has been reaped."""

import asyncio
import contextlib
import itertools
import logging
import os
import shutil
import signal
import sys
from collections import deque
from pathlib import Path

from engine.client import EngineClient
from engine.config import EngineConfig
from engine.errors import EngineDeadError, EngineStoppedError
from engine.lifetime import child_environment, describe_exit, is_stopped
from engine.messages import encode
from server.fleet.pulse import PulseReader
from server.telemetry.logs import with_fields

logger = logging.getLogger(__name__)

ENGINE_COMMAND = (sys.executable, "-P", "-m", "engine.process")
FETCH_COMMAND = (sys.executable, "-P", "-m", "engine.fetch")
"""`-P` keeps the working directory out of the module path, where a stray `random.py` would shadow the library's."""

MAX_LINE_BYTES = 8192
LAST_WORDS = 20
TERMINATE_SECONDS = 2.0
FINAL_FRAMES_SECONDS = 0.1

_numbers = itertools.count(1)


class EngineProcess:
    """A running engine process and the client that talks to it.

    The process has a group of its own, so that Ctrl-C in a terminal reaches the server alone and it decides how the
    engine ends. Whatever the engine prints goes to this process's log, line by line under the model's name.
    """

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        client: EngineClient,
        pulse: PulseReader,
        directory: Path | None = None,
    ) -> None:
        """Use `spawn`. `directory` is removed when the process has ended."""
        self.name = name
        self.client = client
        self.pulse = pulse
        self.reason: str | None = None
        """Why the server ended it, if it did."""
        self._directory = directory
        self.last_words: deque[str] = deque(maxlen=LAST_WORDS)
        self._process = process
        self._pump = asyncio.create_task(self._pump_output(), name=f"engine-log {name}")
        self._exit = asyncio.create_task(self._watch_exit(), name=f"engine-exit {name}")

    @classmethod
    async def spawn(cls, config: EngineConfig, directory: Path, command: tuple[str, ...]) -> "EngineProcess":
        """Start `command ENDPOINT PULSE` with the configuration on its standard input.

        `directory` must be one that only this user can enter. The engine gets one in it, with the socket and whatever
        else it has to put somewhere. Raises `OSError` if there is no room, or the program cannot be started.
        """
        own = directory / str(next(_numbers))
        own.mkdir(mode=0o700)
        client, pulse = EngineClient(f"ipc://{own}/socket"), PulseReader()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                client.endpoint,
                str(pulse.theirs),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=_environment(),
                pass_fds=[pulse.theirs],
                process_group=0,
            )
        except BaseException:
            await client.close()
            pulse.close()
            shutil.rmtree(own, ignore_errors=True)
            raise
        finally:
            pulse.started()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            process.stdin.write(encode(config))
            await process.stdin.drain()
            process.stdin.close()
        return cls(config.name, process, client, pulse, own)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped (SIGSTOP), and has not ended."""
        return is_stopped(self.pid)

    async def wait(self) -> int:
        """Wait for the end of the process; its exit code, negative for a signal."""
        return await asyncio.shield(self._exit)

    def describe(self, code: int) -> EngineDeadError:
        """Why it has ended: what it said itself, or what its exit code means."""
        self.pulse.read()
        ended = self.reason or (self.pulse.last_word and f"ended: {self.pulse.last_word}") or describe_exit(code)
        return EngineDeadError(f"the engine of model {self.name} {ended}")

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
        self.pulse.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

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
        self.client.mark_dead(self.describe(code))
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


def _environment() -> dict[str, str]:
    return {
        **child_environment(),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",  # a crash, or our SIGABRT, prints where every thread stood
    }
