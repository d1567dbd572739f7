"""What clients see whose requests are not done when the server is told to end."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from server.prompt.text_process import TextPolicy
from tests.server.fakes import RunningServer, Script, running_server, wait_until
from tests.server.routes.test_long_texts import NEVER_DONE

CHAT = "/v1/chat/completions"
ENDLESS: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 10**6}


def send(server: RunningServer, path: str, body: bytes, *, missing: int = 0) -> socket.socket:
    """A connection on which a request was sent, but for the last bytes of its body."""
    connection = server.connect()
    connection.sendall(
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (path.encode(), len(body) + missing, body)
    )
    return connection


def rest(connection: socket.socket) -> tuple[bytes, bytes]:
    """Head and body of the answer."""
    data = b""
    with connection:
        while chunk := connection.recv(65536):
            data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    return head, body


def code_of(body: bytes) -> str:
    return str(json.loads(body)["error"]["code"])


def test_what_is_left_at_the_end_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, smollm2_dir: Path) -> None:
    script = Script(model_dir=str(smollm2_dir), token_ids=[504], step_seconds=0.01, context=10**7)
    long = json.dumps({"messages": [{"role": "user", "content": "a" * 2 * TextPolicy().large_bytes}]}).encode()
    with running_server(monkeypatch, tmp_path, script) as server:
        texts = server.server.texts
        assert texts is not None
        monkeypatch.setattr(texts, "policy", TextPolicy(command=NEVER_DONE))
        streamed = send(server, CHAT, json.dumps({**ENDLESS, "stream": True}).encode())
        assert streamed.recv(100)
        whole = send(server, CHAT, json.dumps(ENDLESS).encode())
        wait_until(lambda: len(server.events("add")) == 2)
        half_sent = send(server, CHAT, b"{", missing=100)
        reading = [send(server, path, long) for path in ("/tokenize", CHAT, CHAT)]  # there are processes for one
        wait_until(lambda: texts.num_processes and server.call(lambda: len(texts._waiting)) == 2)
        server.loop.call_soon_threadsafe(server.server.stop)
        _, events = rest(streamed)
        assert b'"engine_died"' in events and b"data: [DONE]\n\n" in events
        head, body = rest(whole)
        assert head.startswith(b"HTTP/1.1 503") and code_of(body) == "engine_died" and b"retry-after" in head.lower()
        for connection in (half_sent, *reading):
            head, body = rest(connection)
            assert head.startswith(b"HTTP/1.1 503") and code_of(body) == "overloaded", body
        assert not texts.num_processes


def test_a_body_that_has_not_come_whole_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, smollm2_dir: Path
) -> None:
    """What runs still has its time then."""
    script = Script(model_dir=str(smollm2_dir), token_ids=[504], step_seconds=0.01, context=10**7)
    with running_server(monkeypatch, tmp_path, script) as server:
        streamed = send(server, CHAT, json.dumps({**ENDLESS, "stream": True}).encode())
        assert streamed.recv(100)
        half_sent = [send(server, path, b"{", missing=100) for path in ("/tokenize", CHAT)]
        wait_until(lambda: server.call(lambda: server.server.admission.buffered) == 2)
        server.call(server.server.admission.drain)
        for connection in half_sent:
            with connection:
                assert connection.recv(65536).startswith(b"HTTP/1.1 503")
        assert b"data: " in streamed.recv(65536)
        streamed.close()
        server.server.admission.draining = False  # it has not been told to end yet
