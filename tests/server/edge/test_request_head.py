"""HTTP that two parties could read differently, and heads of any length, over raw sockets."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.edge.limits import Limits
from server.edge.request_head import MAX_HEAD_BYTES, SINGLE_FIELDS
from tests.server.edge.test_edge import exchange
from tests.server.fakes import RunningServer, Script, running_server

END = "Connection: close\r\n\r\n"
POST = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = POST + "Transfer-Encoding: chunked\r\n\r\n"
VALUES = {"host": "localhost", "content-length": "2", "content-type": "application/json", "expect": "100-continue",
          "transfer-encoding": "chunked", "content-encoding": "identity"}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smollm2_dir: Path) -> Iterator[RunningServer]:
    with (
        pytest.MonkeyPatch.context() as patch,
        running_server(
            patch,
            tmp_path_factory.mktemp("head"),
            Script(model_dir=str(smollm2_dir), token_ids=[504]),
            limits=Limits(max_body_bytes=100_000),
        ) as running,
    ):
        yield running


AMBIGUOUS = {
    "HTTP/1.2": "GET /health HTTP/1.2\r\nHost: localhost\r\n" + END,
    "HTTP/2.0": "GET /health HTTP/2.0\r\nHost: localhost\r\n" + END,
    "HTTP/0.9": "GET /health HTTP/0.9\r\nHost: localhost\r\n" + END,
    "HTTP/1.10": "GET /health HTTP/1.10\r\nHost: localhost\r\n" + END,
    "http/1.1": "GET /health http/1.1\r\nHost: localhost\r\n" + END,
    "two empty lines before": "\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n" + END,
    "a control character in a header": "GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\x01b\r\n" + END,
    "an escape in a header": "GET /health HTTP/1.1\r\nHost: localhost\r\nX: \x1b[2J\r\n" + END,
    "no host": "GET /health HTTP/1.1\r\n" + END,
    "a user in the target": "GET http://a@localhost/health HTTP/1.1\r\nHost: localhost\r\n" + END,
    "a target of another kind": "GET ftp://localhost/health HTTP/1.1\r\nHost: localhost\r\n" + END,
    "an encoded charset": POST.replace("json\r", "json; charset*=utf-8''utf-8\r") + "Content-Length: 2\r\n\r\n{}",
    "a chunk after a bare line feed": CHUNKED + "2\n{}\r\n0\r\n\r\n",
    "a bare line feed after a chunk": CHUNKED + "2\r\n{}\n0\r\n\r\n",
    "a bare line feed after the last size": CHUNKED + "2\r\n{}\r\n0\n",
    "no header behind the last chunk": CHUNKED + "2\r\n{}\r\n0\r\nXX\r\n",
    "a chunk of a wrong length": CHUNKED + "2\r\n{}XX",
    "a size with a space": CHUNKED + "2 \r\n{}\r\n0\r\n\r\n",
    "a size of many digits": CHUNKED + "ffffffffffffffffff\r\n{}",
    "no size": CHUNKED + "\r\n{}\r\n",
    "an endless line before a chunk": CHUNKED + "2;" + 2000 * "x",
    "no version": "GET /health\r\nHost: localhost\r\n" + END,
    "two spaces": "GET  /health HTTP/1.1\r\nHost: localhost\r\n" + END,
    "1.0 with chunks": "POST /tokenize HTTP/1.0\r\nContent-Type: application/json\r\n"
    "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "a bare line feed after the request line": "GET /health HTTP/1.1\nHost: localhost\r\n" + END,
    "a bare line feed between headers": "GET /health HTTP/1.1\r\nHost: localhost\nX: y\r\n" + END,
    "a bare line feed at the end": "GET /health HTTP/1.1\r\nHost: localhost\r\n\n",
    "bare line feeds alone": "GET /health HTTP/1.1\nHost: localhost\n\n",
    "a bare carriage return": "GET /health HTTP/1.1\r\nHost: localhost\rX: y\r\n" + END,
    "a folded header": "GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n" + END,
    "a folded first header": "GET /health HTTP/1.1\r\n Host: localhost\r\n" + END,
    "a header folded with a tab": "GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\r\n\tb\r\n" + END,
    "a space before the colon": "GET /health HTTP/1.1\r\nHost : localhost\r\n" + END,
    "a length with a sign": POST + "Content-Length: +2\r\n\r\n{}",
    "a list of lengths": POST + "Content-Length: 2, 2\r\n\r\n{}",
    "length and chunks": POST + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "a coding that is not chunked": POST + "Transfer-Encoding: gzip\r\n\r\n{}",
    "a trailer that ends with a bare line feed": POST + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: y\n\r\n",
    "chunks that end with a bare line feed": POST + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\n",
    "a folded trailer": POST + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: y\r\n z\r\n\r\n",
    "a chunk size with a sign": POST + "Transfer-Encoding: chunked\r\n\r\n+2\r\n{}\r\n0\r\n\r\n",
    "another charset": POST.replace("json\r", "json; charset=utf-16\r") + "Content-Length: 2\r\n\r\n{}",
    "two charsets": POST.replace("json\r", "json; charset=utf-8; charset=latin-1\r") + "Content-Length: 2\r\n\r\n{}",
    "an empty charset": POST.replace("json\r", "json; charset=\r") + "Content-Length: 2\r\n\r\n{}",
} | {
    f"{name} twice{' with one value' * same}": "POST /tokenize HTTP/1.1\r\n"
    + "".join(f"{field}: {value}\r\n" for field, value in VALUES.items() if field in ("host", "content-type"))
    + f"{name}: {VALUES.get(name, 'a')}\r\n{name.title()}: {VALUES.get(name, 'a') if same else 'b'}\r\n\r\n"
    for name in (field.decode() for field in sorted(SINGLE_FIELDS))
    for same in (True, False)
}  # fmt: skip


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_could_be_read_in_two_ways_is_a_400(name: str, server: RunningServer) -> None:
    status, headers, body = exchange(server, AMBIGUOUS[name].encode())
    error = json.loads(body)["error"]
    assert (status, error["code"], error["type"]) == (400, "bad_http", "invalid_request_error")
    assert headers["connection"] == "close"


def test_it_is_refused_byte_by_byte_too(server: RunningServer) -> None:
    with server.connect() as connection:
        for byte in b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n":
            try:
                connection.sendall(bytes([byte]))
            except ConnectionError:
                break  # answered before we wrote all
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("sizes", ["fffffff", "ffffffffffffffff", "18000\r\n" + 0x18000 * "x" + "\r\n18000"])
def test_chunks_that_announce_too_much_are_refused_at_once(sizes: str, server: RunningServer) -> None:
    """The connection stays open for writing, as that of a client that goes on."""
    with server.connect() as connection:
        connection.sendall(f"{CHUNKED}{sizes}\r\n{{".encode())
        head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413") and b"request_too_large" in (body or connection.recv(65536))


def test_a_host_in_the_target_is_the_request_s(server: RunningServer) -> None:
    """RFC 9112, section 3.2.2; a page whose name points here gets in by neither."""
    for target, host, wanted in (("localhost", "evil", 200), ("evil", "localhost", 403)):
        request = f"GET http://{target}/health?x=1 HTTP/1.1\r\nHost: {host}\r\n{END}"
        assert exchange(server, request.encode())[0] == wanted


CLEAR = {
    "an absolute target": "GET http://localhost/health HTTP/1.1\r\nHost: localhost\r\n" + END,
    "an absolute target with a port": "GET HTTP://localhost:80/health HTTP/1.1\r\nHost: localhost:80\r\n" + END,
    "an empty line before": "\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n" + END,
    "a tab in a header": "GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\tb\r\n" + END,
    "utf8": POST.replace("json\r", "json; charset=UTF8\r")
    + 'Connection: close\r\nContent-Length: 14\r\n\r\n{"prompt":"a"}',
    "ascii": POST.replace("json\r", "json; charset=US-ASCII\r")
    + 'Connection: close\r\nContent-Length: 14\r\n\r\n{"prompt":"a"}',
    "an extension of a chunk": POST + "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    'E;a=b\r\n{"prompt":"a"}\r\n000\r\n\r\n',
    "HTTP/1.0": "GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n",
    "a header twice that may be a list": "GET /health HTTP/1.1\r\nHost: localhost\r\nAccept: a\r\nAccept: b\r\n" + END,
    "a charset": POST.replace("json\r", 'json; Charset="UTF-8"\r') + "Connection: close\r\n"
    'Content-Length: 14\r\n\r\n{"prompt":"a"}',
    "chunks and a trailer": POST + "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    'e\r\n{"prompt":"a"}\r\n0\r\nX: y\r\n\r\n',
}  # fmt: skip


@pytest.mark.parametrize("name", CLEAR)
def test_what_is_clear_is_answered(name: str, server: RunningServer) -> None:
    status, _, body = exchange(server, CLEAR[name].encode())
    assert status == 200, body


def head(target: str, value: str) -> bytes:
    return f"GET /health{target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Long: {value}\r\n\r\n".encode()


ROOM = MAX_HEAD_BYTES - len(head("?", ""))


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (head("?", "a" * ROOM), 200, None),
        (head("?", "a" * (ROOM + 1)), 431, "headers_too_large"),
        (head("?" + "a" * ROOM, ""), 200, None),
        (head("?" + "a" * (ROOM + 1), ""), 431, "headers_too_large"),
        (head("?" + "a" * MAX_HEAD_BYTES, ""), 414, "uri_too_long"),
        (head("?" + "a" * 5_000_000, ""), 414, "uri_too_long"),
        (head("?", "a\r\nX-Y: " * 9000), 431, "headers_too_large"),
        (head("?", "a" * 5_000_000), 431, "headers_too_large"),
    ],
    ids=["long", "too long", "long target", "just too long", "target", "huge target", "many", "huge"],
)
def test_heads_may_have_64_kib_and_not_more(
    request_bytes: bytes, status: int, code: str | None, server: RunningServer
) -> None:
    got, _, body = exchange(server, request_bytes)
    assert got == status
    assert code is None or json.loads(body)["error"]["code"] == code


LATE = "Content-Length: 90000\r\nConnection: keep-alive\r\n\r\n"
EARLY = {
    "415": (415, POST.replace("application/json", "text/plain") + LATE, 90_000),
    "413": (413, POST + "Content-Length: 9000000\r\n\r\n", 9_000_000),
    "413, chunked": (413, POST + "Transfer-Encoding: chunked\r\n\r\n" + "1ffff\r\n" + "a" * 0x1FFFF + "\r\n", 0),
    "404": (404, POST.replace("/tokenize", "/nothing") + LATE, 90_000),
    "405": (405, POST.replace("/tokenize", "/health") + LATE, 90_000),
    "403": (403, POST.replace("localhost", "evil.example") + LATE, 90_000),
    "400": (400, POST + "Host: localhost\r\n" + LATE, 90_000),
}


@pytest.mark.parametrize("name", EARLY)
def test_an_early_refusal_reaches_a_client_that_writes_first(name: str, server: RunningServer) -> None:
    """It writes all of its body, and more than a socket buffers, before it reads."""
    status, start, size = EARLY[name]
    got, _, body = exchange(server, start.encode() + b" " * size)
    assert got == status and json.loads(body)["error"]["message"]


def test_a_client_without_a_key_sees_the_401(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_server(
        monkeypatch, tmp_path_factory.mktemp("keys"), Script(), ready=False, api_keys=("secret",)
    ) as running:
        got, _, body = exchange(running, (POST + "Content-Length: 9000000\r\n\r\n").encode() + b" " * 9_000_000)
    assert got == 401 and json.loads(body)["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/metrics", "/openapi.json", "/nothing"])
def test_head_is_get_without_a_body(path: str, server: RunningServer) -> None:
    status, headers, body = exchange(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{END}".encode())
    assert body
    answer = exchange(server, f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n{END}".encode())
    assert answer[0] == status and answer[2] == b""
    assert path == "/metrics" or answer[1]["content-length"] == headers["content-length"]


def test_head_of_what_is_posted_is_refused(server: RunningServer) -> None:
    assert exchange(server, f"HEAD /tokenize HTTP/1.1\r\nHost: localhost\r\n{END}".encode())[0] == 405


def test_more_answers_than_the_server_ever_gives_are_a_400(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, smollm2_dir: Path
) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "n": 3}).encode()
    script = Script(model_dir=str(smollm2_dir), token_ids=[504])
    with running_server(monkeypatch, tmp_path_factory.mktemp("n"), script, limits=Limits(max_requests=2)) as running:
        status, _, answer = exchange(
            running,
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body),
        )
    assert status == 400 and json.loads(answer)["error"]["param"] == "n"
