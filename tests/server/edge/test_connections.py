"""More connections than there may be, and than there are descriptors."""

import asyncio
import json
import math
import os
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from server.edge import connections
from server.edge.connections import EXTRA_CONNECTIONS, most_connections
from server.edge.limits import Limits
from tests.clocks import PATIENCE
from tests.places import ROOT
from tests.server.fake_engine import SCRIPT_VARIABLE
from tests.server.fakes import RunningServer, Script, running_server, wait_until

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
SLOW = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
LIMIT = 5


def ask(port: int, request: bytes = HEALTH) -> bytes:
    """The first line of an answer on a new connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
        connection.sendall(request)
        return connection.recv(65536).partition(b"\r\n")[0]


@contextmanager
def limited_server(tmp_path: Path, model_dir: Path, files: int) -> Iterator[tuple[int, Path]]:
    """A server in a process that may open so many files; its port and its log."""
    port_file, log = tmp_path / "port", tmp_path / "log"
    command = [sys.executable, "-m", "tests.server.serve_fake", str(port_file)]
    script = msgspec.json.encode(Script(model_dir=str(model_dir))).decode()
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *command],
            cwd=ROOT,
            env={**os.environ, SCRIPT_VARIABLE: script, "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: port_file.exists() and port_file.read_text())
        port = int(port_file.read_text())
        wait_until(lambda: ask(port))
        yield port, log
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_more_connections_than_descriptors_deafen_nobody(tmp_path: Path, smollm2_dir: Path) -> None:
    with limited_server(tmp_path, smollm2_dir, 64) as (port, log), ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE))
        until = time.monotonic() + 3
        quick = 0
        while quick < 4 or time.monotonic() < until:
            began = time.monotonic()
            assert ask(port).startswith(b"HTTP/1.1 ") and began < until + PATIENCE
            quick += time.monotonic() - began < 1.0  # asyncio's own server hears nobody for a second, each time
        said = log.read_text()
        assert "Traceback" not in said and len(said) < 5000, said[:2000]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smollm2_dir: Path) -> Iterator[RunningServer]:
    with (
        pytest.MonkeyPatch.context() as patch,
        running_server(
            patch,
            tmp_path_factory.mktemp("connections"),
            Script(model_dir=str(smollm2_dir), token_ids=[504]),
            limits=Limits(max_connections=LIMIT, body_seconds=PATIENCE),
        ) as running,
    ):
        yield running


def is_open(connection: socket.socket) -> bool:
    """Whether the server has not ended a connection on which it has nothing to say."""
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def test_the_longest_idle_connection_is_ended_for_a_new_one(server: RunningServer) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(server.connect()) for _ in range(LIMIT)]
        for connection in idle:
            connection.sendall(HEALTH)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert ask(server.port).startswith(b"HTTP/1.1 200")
        wait_until(lambda: not is_open(idle[0]))
        assert all(map(is_open, idle[1:]))


def test_connections_with_requests_stay_and_health_is_answered_beside_them(server: RunningServer) -> None:
    with ExitStack() as stack:
        busy = [stack.enter_context(server.connect()) for _ in range(LIMIT)]
        for connection in busy:
            connection.sendall(SLOW)
        wait_until(lambda: server.call(lambda: server.server.admission.buffered) == LIMIT)
        for _ in range(3 * EXTRA_CONNECTIONS):
            assert ask(server.port).startswith(b"HTTP/1.1 200")
        assert ask(server.port, HEALTH.replace(b"/health", b"/v1/models")).startswith(b"HTTP/1.1 503")
        assert all(map(is_open, busy))
        # Idle ones beyond the limit give way to each other.
        for _ in range(3 * EXTRA_CONNECTIONS):
            stack.enter_context(server.connect())
        assert ask(server.port).startswith(b"HTTP/1.1 200")
    wait_until(lambda: server.call(lambda: server.server.admission.buffered) == 0)
    assert ask(server.port, HEALTH.replace(b"/health", b"/v1/models")).startswith(b"HTTP/1.1 200")


def test_requests_beside_a_flood_of_idle_connections_are_answered(server: RunningServer) -> None:
    """Their bytes come a moment after the connection, and wait a moment until they are read."""
    address, body = ("127.0.0.1", server.port), b'{"prompt": "a"}'
    request = SLOW.replace(b"Content-Length: 100", b"Connection: close\r\nContent-Length: %d" % len(body))[:-1] + body
    answers: list[bytes] = []

    def post() -> None:
        """Ask, and again where this very thread was held up until its connection was an idle one."""
        while True:
            began, sent, answer = time.monotonic(), math.inf, b""
            with suppress(ConnectionError), socket.create_connection(address, timeout=PATIENCE) as connection:
                connection.sendall(request)
                sent = time.monotonic()
                answer = connection.recv(65536)[:12]
            if answer or sent - began < connections.NEW_SECONDS:
                answers.append(answer)
                return

    for _ in range(5):
        with ExitStack() as stack:
            clients = [threading.Thread(target=post) for _ in range(4)]
            for client in clients:
                client.start()
            for _ in range(4 * LIMIT):
                stack.enter_context(socket.create_connection(address, timeout=PATIENCE))
            for client in clients:
                client.join()
    assert len(answers) == 20 and set(answers) <= {b"HTTP/1.1 200", b"HTTP/1.1 503"}, answers


def test_a_request_that_has_begun_is_told_why_it_ends(server: RunningServer) -> None:
    with ExitStack() as stack:
        begun = [stack.enter_context(server.connect()) for _ in range(LIMIT)]
        for connection in begun:
            connection.sendall(b"GET /health HTTP/1.1\r\n")
        wait_until(lambda: ask(server.port).startswith(b"HTTP/1.1 200") and select.select(begun, [], [], 0)[0])
        for ended in select.select(begun, [], [], 0)[0]:
            assert ended.recv(65536).startswith(b"HTTP/1.1 503")


def test_who_never_said_anything_is_ended_first() -> None:
    class Open:
        def __init__(self, since: float | None, *, spoke: bool = False, waiting: bool = False) -> None:
            self.idle_since, self.spoke, self.waiting = since, spoke, waiting

        def has_input(self) -> bool:
            return self.waiting

        def evict(self) -> None:
            opened.remove(self)

    async def evicted() -> list[Open]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            acceptor = connections.Acceptor(listener, lambda extra: asyncio.Protocol(), opened, LIMIT)
            gone = []
            while opened and (chosen := acceptor._longest_idle()) is not None:
                chosen.evict()
                gone.append(chosen)
            acceptor.close()
            return gone  # type: ignore[return-value]

    now = time.monotonic()
    busy, fresh, written = Open(None, spoke=True), Open(now + 60), Open(now - 9, waiting=True)
    quiet, quieter, kept = Open(now - 2), Open(now - 3), Open(now - 99, spoke=True)
    opened: list[Open] = [busy, fresh, written, quiet, kept, quieter]
    assert asyncio.run(evicted()) == [quieter, quiet, kept]


def test_as_many_connections_as_open_files_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = [str(number) for number in range(30)]  # other tests of this process open and close some meanwhile
    monkeypatch.setattr(os, "listdir", lambda place: {"/dev/fd": in_use}[place])
    monkeypatch.setattr(resource, "getrlimit", lambda which: (len(in_use) + 100, hard))
    assert most_connections(None) == 100 - connections.RESERVED_DESCRIPTORS and most_connections(7) == 7
    assert most_connections(10_000) == most_connections(None)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, hard))
    assert most_connections(None) == connections.MAX_CONNECTIONS and most_connections(99_999) == 99_999


def test_the_limit_on_open_files_is_raised(tmp_path: Path) -> None:
    code = (
        "import resource, json; from server.edge.connections import raise_descriptor_limit; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128)); raise_descriptor_limit(); "
        "print(json.dumps(resource.getrlimit(resource.RLIMIT_NOFILE)))"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert json.loads(said) == [128, 128]
