"""What holds for every route, over raw sockets against the real server."""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import uvicorn
from starlette.datastructures import Headers
from starlette.types import Message
from uvicorn.server import ServerState

from server.edge.http_protocol import HEADER_SECONDS, GuardedH11Protocol
from server.edge.limits import Admission, Limits
from server.protocol.errors import ApiError
from tests.clocks import PATIENCE
from tests.server import patient
from tests.server.fakes import RunningServer, Script, running_server
from tests.server.made_up_time import run_in_made_up_time

CHAT = "/v1/chat/completions"


def exchange(server: RunningServer, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send raw bytes and read until the server closes."""
    with server.connect() as connection:
        connection.sendall(request)
        data = b""
        while chunk := connection.recv(65536):
            data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(status.split()[1]), headers, body


def error_of(body: bytes) -> dict[str, str]:
    error: dict[str, str] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smollm2_dir: Path) -> Iterator[RunningServer]:
    with (
        pytest.MonkeyPatch.context() as patch,
        running_server(
            patch,
            tmp_path_factory.mktemp("edge"),
            Script(model_dir=str(smollm2_dir), token_ids=[504]),
            limits=Limits(max_body_bytes=100_000),
        ) as running,
    ):
        patch.setattr(GuardedH11Protocol, "linger_seconds", PATIENCE)
        yield running


def test_unknown_paths_and_methods_answer_in_the_api_shape(server: RunningServer) -> None:
    missing = patient.get(f"{server.url}/nothing/here")
    assert missing.status_code == 404 and error_of(missing.content)["code"] == "not_found"
    wrong = patient.get(server.url + CHAT)
    assert wrong.status_code == 405 and error_of(wrong.content)["code"] == "method_not_allowed"
    assert wrong.headers["allow"] == "POST"


def test_length_and_chunked_together_are_refused(server: RunningServer) -> None:
    status, headers, body = exchange(
        server,
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    )
    assert status == 400 and error_of(body)["code"] == "bad_http"
    assert headers["connection"] == "close"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
    ids=["two hosts", "not http", "two lengths"],
)
def test_what_is_not_http_gets_a_400_in_the_api_shape(server: RunningServer, request_bytes: bytes) -> None:
    status, _, body = exchange(server, request_bytes)
    assert status == 400 and error_of(body)["type"] == "invalid_request_error"


def test_a_big_header_is_not_taken(server: RunningServer) -> None:
    status, _, body = exchange(
        server, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Big: " + b"a" * 8_000_000 + b"\r\n\r\n"
    )
    assert status == 431 and error_of(body)["code"] == "headers_too_large"
    assert patient.get(f"{server.url}/health").status_code == 200


def test_many_headers_are_refused(server: RunningServer) -> None:
    lines = b"".join(b"X-%d: a\r\n" % number for number in range(200))
    status, _, _ = exchange(
        server, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + lines + b"\r\n"
    )
    assert status == 431


STARTS = [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\n"]


@pytest.mark.parametrize("start", STARTS)
def test_headers_that_do_not_come_end_the_connection(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    monkeypatch.setattr(GuardedH11Protocol, "header_seconds", 0.2)
    with server.connect() as connection, contextlib.suppress(ConnectionError):  # it may be over before we write
        connection.sendall(start)
        assert connection.recv(1000) == b""


@pytest.mark.parametrize("start", STARTS)
def test_headers_have_their_time_from_the_connection_on_and_not_more(start: bytes) -> None:
    """Whatever trickles in meanwhile."""

    async def scenario() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        config = uvicorn.Config(lambda: None, http=GuardedH11Protocol, lifespan="off", log_config=None)
        config.load()
        protocol = GuardedH11Protocol(config, ServerState(), {}, loop)
        transport = Mock(spec=asyncio.Transport)
        transport.is_closing.return_value = False
        transport.get_extra_info.return_value = None
        protocol.connection_made(transport)
        for byte in start:
            await asyncio.sleep(0.1)
            protocol.data_received(bytes([byte]))
        closed = loop.create_future()
        transport.close.side_effect = lambda: closed.set_result(loop.time())
        return len(start) * 0.1, await closed

    written, closed = run_in_made_up_time(scenario())
    assert written < closed == HEADER_SECONDS


def test_a_second_request_that_stalls_ends_the_connection_too(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        data = b""
        while not data.endswith(b"}}"):
            data += connection.recv(65536)
        assert data.startswith(b"HTTP/1.1 200")
        monkeypatch.setattr(GuardedH11Protocol, "header_seconds", 0.2)
        connection.sendall(b"GET /health")
        assert connection.recv(1000) == b""


def test_a_body_that_does_not_come_is_a_408(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hasty = dataclasses.replace(server.server.admission.limits, body_seconds=0.2)
    monkeypatch.setattr(server.server.admission, "limits", hasty)
    status, _, body = exchange(
        server,
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\n\r\n{",
    )
    assert status == 408 and error_of(body)["code"] == "request_timeout"


def test_a_body_has_its_time_and_not_more() -> None:
    async def scenario() -> tuple[ApiError, float]:
        async def receive() -> Message:
            await asyncio.sleep(7.0)
            return {"type": "http.request", "body": b" ", "more_body": True}

        with pytest.raises(ApiError) as caught:
            await Admission(Limits()).read_json_body(Headers({"content-type": "application/json"}), receive)
        return caught.value, asyncio.get_running_loop().time()

    error, seconds = run_in_made_up_time(scenario())
    assert error.status == 408 and seconds == Limits().body_seconds


def test_oversized_bodies_are_413_declared_or_not(server: RunningServer) -> None:
    declared = patient.post(server.url + CHAT, content=b" " * 200_000, headers={"content-type": "application/json"})
    assert declared.status_code == 413 and error_of(declared.content)["code"] == "request_too_large"
    pieces = (b" " * 10_000 for _ in range(20))
    streamed = patient.post(server.url + CHAT, content=pieces, headers={"content-type": "application/json"})
    assert streamed.status_code == 413
    assert patient.get(f"{server.url}/openapi.json").json()["x-limits"]["request_bytes"] == 100_000


@pytest.mark.parametrize("content_type", ["text/plain", "", "multipart/form-data; boundary=x"])
def test_other_content_types_are_415(server: RunningServer, content_type: str) -> None:
    answer = patient.post(server.url + CHAT, content=b"{}", headers={"content-type": content_type})
    assert answer.status_code == 415


def test_encoded_bodies_are_415(server: RunningServer) -> None:
    answer = patient.post(
        server.url + CHAT, content=b"{}", headers={"content-type": "application/json", "content-encoding": "gzip"}
    )
    assert answer.status_code == 415


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        b'{"a":"\\ud800"}',
        b"[" * 90_000,
        b'{"zz":NaN}',
        b"1e999",
    ],
)
def test_bodies_that_are_not_a_request_are_400(server: RunningServer, body: bytes) -> None:
    answer = patient.post(server.url + CHAT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    error_of(answer.content)


def test_unknown_fields_are_named(server: RunningServer) -> None:
    answer = patient.post(server.url + CHAT, json={"messages": [{"role": "user", "content": "x"}], "zz": 1})
    assert answer.status_code == 400 and error_of(answer.content)["param"] == "zz"


def test_request_ids_are_given_back_if_they_are_safe(server: RunningServer) -> None:
    assert patient.get(f"{server.url}/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for given in ("a b", "a" * 65, "<script>", "é".encode().decode("latin-1")):
        status, headers, _ = exchange(
            server,
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Request-Id: "
            + given.encode("latin-1")
            + b"\r\n\r\n",
        )
        assert status == 200 and headers["x-request-id"].startswith("req-")


def test_foreign_host_names_are_refused_on_loopback(server: RunningServer) -> None:
    assert patient.get(f"{server.url}/health", headers={"host": "evil.example"}).status_code == 403
    assert patient.get(f"{server.url}/health", headers={"host": "a/?x="}).status_code == 403
    assert patient.get(f"{server.url}/health", headers={"host": f"localhost:{server.port}"}).status_code == 200


def test_pipelined_requests_are_answered_in_order(server: RunningServer) -> None:
    one = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    two = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(one + two)
        data = b""
        while chunk := connection.recv(65536):
            data += chunk
    assert data.index(b"HTTP/1.1 200") < data.index(b"HTTP/1.1 404")
