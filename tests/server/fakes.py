"""Starting the scripted engine, and a real server on a free port in front of it."""

import asyncio
import io
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from engine.config import EngineConfig
from server.commands.address import bind
from server.commands.banner import Console
from server.commands.serve import HeadraceServer, ServeSettings, make_keys
from server.fleet.handle import EngineHandle
from server.fleet.policy import FleetPolicy
from tests.clocks import PATIENCE
from tests.clocks import wait_until as wait_until  # for tests of the server, which take all else from here
from tests.server import patient
from tests.server.fake_engine import SCRIPT_VARIABLE, Script

FAKE_COMMAND = (sys.executable, "-m", "tests.server.fake_engine")
NEVER = 1000 * PATIENCE
"""A time limit for what a test must not wait for."""
FAST_POLICY = FleetPolicy(command=FAKE_COMMAND, first_restart_delay=0.1, stale_after=NEVER, hang_after=NEVER)
"""Restarts soon. A process that gets no processor for a while is not taken for a silent one."""

T = TypeVar("T")


def engine_config(name: str = "fake") -> EngineConfig:
    """A configuration the scripted engine reads nothing of but the name."""
    return EngineConfig(name=name, source="random://fake")


def set_script(monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
    """Hand the script to engine processes started from now on."""
    monkeypatch.setenv(SCRIPT_VARIABLE, msgspec.json.encode(script).decode())


@dataclass
class RunningServer:
    """A server in a thread of this process, its engines in processes of their own."""

    server: HeadraceServer
    listener: socket.socket
    console: io.StringIO
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    log: Path

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.listener.getsockname()[1])

    @property
    def url(self) -> str:
        """Without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def handle(self) -> EngineHandle:
        """The first model."""
        return next(iter(self.server.fleet.handles.values()))

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in the server's event loop."""

        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(PATIENCE)

    def pass_time(self, seconds: float) -> None:
        """Set the clock of the server's event loop forward."""

        def shift() -> None:
            before = self.loop.time
            self.loop.time = lambda: before() + seconds  # type: ignore[method-assign]

        self.call(shift)

    @contextmanager
    def standing_time(self) -> Iterator[None]:
        """Let the clock of the server's event loop stand: what waits for a time there does not go on."""
        before = self.loop.time

        def stop() -> None:
            now = before()
            self.loop.time = lambda: now  # type: ignore[method-assign]

        self.call(stop)
        try:
            yield
        finally:
            self.call(lambda: setattr(self.loop, "time", before))

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What the engines wrote down."""
        return logged_events(self.log, kind)

    def connect(self) -> socket.socket:
        """A raw connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)


def logged_events(log: Path, kind: str) -> list[dict[str, Any]]:
    """The events of a scripted engine's log, but for a line that is just being written."""
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return [entry for entry in map(json.loads, lines) if entry["event"] == kind]


def wait_ready(url: str) -> None:
    """Wait until /health says ready."""
    wait_until(lambda: patient.get(f"{url}/health").status_code == 200)


@contextmanager
def running_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script, *, ready: bool = True, **settings: Any
) -> Iterator[RunningServer]:
    """Run a server as `headrace serve` does, but for signals; it is ended and waited for at the end."""
    log = tmp_path / "engine-log"
    set_script(monkeypatch, msgspec.structs.replace(script, log=str(log)))
    options: dict[str, Any] = {"models": (engine_config(),), "policy": FAST_POLICY, "drain_seconds": 0.0} | settings
    chosen = ServeSettings(port=0, **options)
    console = io.StringIO()
    listener = bind(chosen.host, 0)
    server = HeadraceServer(chosen, make_keys(chosen), listener, Console(console))
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        await server.run()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    wait_until(lambda: loops)
    running = RunningServer(server, listener, console, loops[0], thread, log)
    try:
        if ready:
            wait_ready(running.url)
        yield running
    finally:
        if thread.is_alive() and not server.admission.draining:  # a second stop would end this whole process
            running.loop.call_soon_threadsafe(server.stop)
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the server did not end"
        listener.close()
