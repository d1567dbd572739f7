"""Sockets of the file system to listen on: who may, what is in the way, and a server that answers there."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from engine.errors import ConfigError
from server.commands.address import bind_unix, public_url
from tests.clocks import PATIENCE
from tests.places import ROOT
from tests.server.fake_engine import SCRIPT_VARIABLE
from tests.server.fakes import wait_until


@pytest.fixture
def path() -> Iterator[Path]:
    """A short one: a socket's has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        yield Path(directory) / "server.sock"


def test_it_is_this_user_s_and_goes_in_the_end(path: Path) -> None:
    with bind_unix(path) as listener:
        assert path.stat().st_mode & 0o777 == 0o600
        assert public_url(listener) == "http://localhost"
    assert not path.exists()


def test_one_that_was_left_behind_is_replaced_and_one_in_use_is_not(path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with bind_unix(path), pytest.raises(ConfigError, match="cannot listen on the socket"), bind_unix(path):
        pass
    path.write_text("somebody's file")
    with pytest.raises(ConfigError, match="cannot listen on the socket"), bind_unix(path):
        pass
    assert path.read_text() == "somebody's file"


@pytest.mark.parametrize("wrong", ["/nowhere/x.sock", "/tmp/" + "x" * 200])
def test_what_cannot_be_had_is_said(wrong: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen on the socket"), bind_unix(Path(wrong)):
        pass


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("http://any.name/readyz").status_code == 200
    except httpx.ConnectError:  # the socket has its place before anybody listens on it
        return False


def test_a_server_answers_there_and_leaves_nothing(path: Path, smollm2_dir: Path) -> None:
    environment = os.environ | {
        SCRIPT_VARIABLE: json.dumps({"model_dir": str(smollm2_dir), "token_ids": [504], "eos_after": 1}),
        "SERVE_FAKE": json.dumps({"unix_socket": str(path)}),
    }
    command = [sys.executable, "-m", "tests.server.serve_fake"]
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(path.exists)
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=PATIENCE) as client:
            wait_until(lambda: is_ready(client))
            fields = {"messages": [{"role": "user", "content": "hi"}]}
            answer = client.post("http://any.name/v1/chat/completions", json=fields)
        assert answer.json()["choices"][0]["message"]["content"] == "The"
    finally:
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=PATIENCE)
    assert f"curl --unix-socket {path} http://localhost/v1/chat/completions" in log and "browser" not in log
    assert server.returncode == 0 and not path.exists()
