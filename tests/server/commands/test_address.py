"""Sockets of the file system to listen on: who may, what is in the way, and a server that answers there."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from engine.errors import ConfigError
from server.commands.address import bind_unix, public_url
from server.commands.cli import main
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


@contextmanager
def a_server_at(path: Path, smollm2_dir: Path, **settings: object) -> Iterator[subprocess.Popen[str]]:
    """A program of its own that listens there and is ready; it has ended afterwards."""
    environment = os.environ | {
        SCRIPT_VARIABLE: json.dumps({"model_dir": str(smollm2_dir), "token_ids": [504], "eos_after": 1}),
        "SERVE_FAKE": json.dumps({"unix_socket": str(path)} | settings),
    }
    command = [sys.executable, "-m", "tests.server.serve_fake"]
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(path.exists)
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=PATIENCE) as client:
            wait_until(lambda: is_ready(client))
        yield server
    finally:
        server.terminate()
        server.communicate(timeout=PATIENCE)


def test_a_server_answers_there_and_leaves_nothing(
    path: Path, smollm2_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with a_server_at(path, smollm2_dir) as server:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=PATIENCE) as client:
            fields = {"messages": [{"role": "user", "content": "hi"}]}
            answer = client.post("http://any.name/v1/chat/completions", json=fields)
        assert answer.json()["choices"][0]["message"]["content"] == "The"
        assert main(["ps", "--url", f"unix://{path}"]) == 0 and "ready" in capsys.readouterr().out
        monkeypatch.setenv("HEADRACE_URL", f"unix://{path}")
        assert main(["top", "--once"]) == 0 and "ready" in capsys.readouterr().out
        # A proxy may pass requests of others on, so that who comes by the socket is not known to be on this machine.
        assert main(["unload", "fake"]) == 1
        refusal = capsys.readouterr().err
        assert "needs a key over a socket of the file system" in refusal and "--admin-api-key or --keys" in refusal
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=PATIENCE)
    assert f"curl --unix-socket {path} http://localhost/v1/chat/completions" in log and "browser" not in log
    assert server.returncode == 0 and not path.exists()


def test_whoever_has_an_admin_s_key_administers_there(
    path: Path, smollm2_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with a_server_at(path, smollm2_dir, admin_keys=["plugh"]):
        monkeypatch.setenv("HEADRACE_ADMIN_API_KEY", "plugh")
        assert main(["unload", "fake", "--url", f"unix://{path}"]) == 0
        assert "fake: unloaded" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["unix:", "unix://run/x.sock", "unix:///"])
def test_what_names_no_socket_is_no_address(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps", "--url", wrong]) == 1 and "is no address of a server" in capsys.readouterr().err


def test_a_socket_without_a_server_is_said(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps", "--url", f"unix://{path}"]) == 1 and "cannot be asked: No such file" in capsys.readouterr().err
