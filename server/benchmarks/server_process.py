"""A server as a process of its own: started, asked until it answers, measured, and ended with all its children."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from server.benchmarks.chat_stream import Endpoint

PAUSE = 0.1
"""Seconds between two questions to a server that does not answer yet."""
INTERRUPT_SECONDS, KILL_SECONDS = 20, 5


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """A server in a session and a directory of its own; what it writes goes to `log`."""
    with tempfile.TemporaryDirectory() as directory:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=directory, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            yield process
        finally:
            for number, patience in ((signal.SIGINT, INTERRUPT_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(patience)


def wait_for_answer(url: str, body: dict[str, Any], process: "subprocess.Popen[bytes]", seconds: float) -> str:
    """Ask until a streamed answer comes; what went wrong if none does."""
    deadline = time.monotonic() + seconds
    problem = "no answer"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return f"it ended with status {process.returncode}"
        reply = asyncio.run(Endpoint(url).chat(body, timeout=max(1.0, deadline - time.monotonic())))
        if reply.error is None and reply.times:
            return ""
        problem = reply.error or "an answer without text"
        time.sleep(PAUSE)
    return problem


def memory_mib(process: "subprocess.Popen[bytes]") -> int:
    """Memory of a server and its children, shared pages divided among their users; without what is on a GPU."""
    total = 0
    for one in [parent := psutil.Process(process.pid), *parent.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += one.memory_full_info().pss
    return total >> 20


def last_words(log: Path, lines: int = 3) -> str:
    """The end of what a server wrote."""
    with contextlib.suppress(OSError):
        return " / ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-lines:])
    return ""
