"""`headrace serve` as an operator starts it, for checks and tests that want the real thing."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.clocks import PATIENCE
from tests.places import ROOT
from tests.server.fakes import wait_until

CLI = ("server.commands.cli",)


@dataclass(frozen=True)
class Served:
    """A server that runs: its address, and the id of the process that answers there."""

    url: str
    pid: int


def address_of(process: "subprocess.Popen[bytes]", seconds: float = PATIENCE) -> str:
    """Where a server that chose a free port by itself (`--port 0`) listens, once it does."""
    found: list[int] = []

    def listens() -> bool:
        assert process.poll() is None, "the server has ended"
        with suppress(psutil.Error):
            open_ = psutil.Process(process.pid).net_connections("tcp")
            found.extend(connection.laddr.port for connection in open_ if connection.status == psutil.CONN_LISTEN)
        return bool(found)

    wait_until(listens, seconds)
    return f"http://127.0.0.1:{found[0]}"


@contextmanager
def running_server(*arguments: str, seconds: float = 120) -> Iterator[str]:
    """The address of a server with these arguments, once its models are loaded, which may take so many seconds."""
    with server_process(*arguments, seconds=seconds) as served:
        yield served.url


@contextmanager
def server_process(
    *arguments: str,
    seconds: float = 120,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
    program: Sequence[str] = CLI,
    python: str | Path = sys.executable,
    directory: Path = ROOT,
) -> Iterator[Served]:
    """The same with its process; `environment` adds variables to those of this one.

    What it writes goes to the file `log`, or else where this process's errors go. `program` is a module to run in the
    command line's place, with what is to stand before `serve`, `python` what runs it, and `directory` where.
    """
    command = [str(python), "-m", *program, "serve", *arguments, "--port", "0"]
    with open(log or os.devnull, "wb") as file:
        output = None if log is None else file
        process = subprocess.Popen(command, cwd=directory, env={**os.environ, **(environment or {})}, stderr=output)

    def is_ready() -> bool:
        assert process.poll() is None, "the server has ended"
        try:
            return httpx.get(f"{url}/health", timeout=30).status_code == 200
        except httpx.TransportError:
            return False

    try:
        url = address_of(process, seconds)
        wait_until(is_ready, seconds)
        yield Served(url, process.pid)
    finally:
        process.terminate()
        process.wait(PATIENCE)


def write_models(directory: Path, *models: dict[str, Any]) -> Path:
    """A models.yaml of these entries; the first is the default."""
    path = directory / "models.yaml"
    path.write_text(json.dumps({"default": models[0]["name"], "models": models}), encoding="utf-8")
    return path
