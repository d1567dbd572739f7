"""`headrace serve` as an operator starts it, for checks and tests that want the real thing."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.places import ROOT
from tests.server.fakes import wait_until

CLI = ("server.commands.cli",)


@dataclass(frozen=True)
class Served:
    """A server that runs: its address, and the id of the process that answers there."""

    url: str
    pid: int


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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(python), "-m", *program, "serve", *arguments, "--port", str(port)]
    with open(log or os.devnull, "wb") as file:
        output = None if log is None else file
        process = subprocess.Popen(command, cwd=directory, env={**os.environ, **(environment or {})}, stderr=output)
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        assert process.poll() is None, "the server has ended"
        try:
            return httpx.get(f"{url}/health", timeout=30).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(is_ready, seconds)
        yield Served(url, process.pid)
    finally:
        process.terminate()
        process.wait(30)


def write_models(directory: Path, *models: dict[str, Any]) -> Path:
    """A models.yaml of these entries; the first is the default."""
    path = directory / "models.yaml"
    path.write_text(json.dumps({"default": models[0]["name"], "models": models}), encoding="utf-8")
    return path
