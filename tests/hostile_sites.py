"""Addresses that nobody should send as images, and a web server that does what none should: each of them is a 400."""

import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.server.images.test_locations import AMBIGUOUS, NOT_PUBLIC

LOOPBACK = [
    "127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:0:0:1]", "0.0.0.0", "[::]",
    "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1",
    "017700000001", "127.0.0.1.", "localhost.", "127.0.0.1%2e", "LOCALHOST", "127.0.0.1\\@example.org", "127.3.4.5",
    "example.org@127.0.0.1",
]  # fmt: skip
"""Ways to write this machine."""
CANARY_HOSTS = ["127.0.0.1", "localhost", "0.0.0.0", "127.3.4.5", "::1", "::", "::ffff:7f00:1"]
"""As an operator would write those of them that are hosts."""


def addresses(port: int) -> Iterator[str]:
    """Addresses that lead inside, or can be read in two ways; `port` is that of a canary on loopback."""
    yield from (url for url in AMBIGUOUS if url)
    yield from (f"http://[{text}]/" if ":" in text else f"http://{text}/" for text in NOT_PUBLIC)
    yield from (f"http://{host}:{port}/canary" for host in LOOPBACK)


Answer = bytes | Callable[[socket.socket], None]
"""What a site says: bytes, or something that it does with the connection."""


def ok(body: bytes, *headers: str) -> bytes:
    """A right answer, but for what the headers say."""
    return "\r\n".join(["HTTP/1.1 200 OK", *headers, "", ""]).encode() + body


def to(target: str) -> bytes:
    """A redirect."""
    return f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode("latin-1")


@dataclass
class Site:
    """A web server on loopback with an answer for each path. Others are not found."""

    answers: Mapping[str, Answer]
    port: int = 0
    seen: list[str] = field(default_factory=list)
    """The path of each connection, empty where none was read."""


@contextmanager
def site(answers: Mapping[str, Answer]) -> Iterator[Site]:
    """Run one, which hears IPv4 and, where there is any, IPv6."""
    running = Site(answers)
    both = socket.has_dualstack_ipv6()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                words = self.request.recv(65536).split(b" ")
                path = words[1].decode() if len(words) > 1 else ""
                running.seen.append(path)
                answer = running.answers.get(path, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                if isinstance(answer, bytes):
                    self.request.sendall(answer)
                else:
                    answer(self.request)
            except OSError:
                pass  # who asked has gone

    class Server(socketserver.ThreadingTCPServer):
        address_family = socket.AF_INET6 if both else socket.AF_INET
        daemon_threads, request_queue_size = True, 64

        def server_bind(self) -> None:
            if both:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            super().server_bind()

    with Server(("", 0), Handler) as server:
        running.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield running
        server.shutdown()


def _slow(connection: socket.socket) -> None:
    connection.sendall(ok(b"", "Content-Length: 1000"))
    while True:
        connection.sendall(b"x")
        time.sleep(0.1)


def _slow_head(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X: y\r\n")
        time.sleep(0.1)


def _silent(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def _endless(connection: socket.socket) -> None:
    connection.sendall(ok(b""))
    while True:
        connection.sendall(b"x" * 65536)


def _endless_chunks(connection: socket.socket) -> None:
    connection.sendall(ok(b"", "Transfer-Encoding: chunked"))
    while True:
        connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")


def _reset(connection: socket.socket) -> None:
    connection.sendall(ok(b"half", "Content-Length: 1000"))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def bad_answers(image: bytes, canary: int) -> dict[str, Answer]:
    """By path; `image` is a good one, and `canary` the port on loopback where nobody must come."""
    length = len(image)
    said: dict[str, Answer] = {
        "slow": _slow,
        "slow-head": _slow_head,
        "silent": _silent,
        "endless": _endless,
        "endless-chunks": _endless_chunks,
        "reset": _reset,
        "nothing": b"",
        "ssh": b"SSH-2.0-OpenSSH_9.9\r\n",
        "http-0.9": image,
        "empty": ok(b"", "Content-Length: 0"),
        "too-short": ok(image, f"Content-Length: {length + 100}"),
        "cut-by-length": ok(image, f"Content-Length: {length // 2}"),
        "negative-length": ok(image, "Content-Length: -1"),
        "two-lengths": ok(image, f"Content-Length: {length}", "Content-Length: 5"),
        "length-of-words": ok(image, "Content-Length: many"),
        "huge-length": ok(image, "Content-Length: 99999999999999999999"),
        "too-large": ok(b"", "Content-Length: 20000001"),
        "length-and-chunks": ok(b"5\r\nabcde\r\n0\r\n\r\n", "Transfer-Encoding: chunked", f"Content-Length: {length}"),
        "broken-chunks": ok(b"zz\r\n" + image, "Transfer-Encoding: chunked"),
        "half-a-chunk": ok(b"ffff\r\n" + image, "Transfer-Encoding: chunked"),
        "gzip": ok(image, "Content-Encoding: gzip", f"Content-Length: {length}"),
        "html": ok(b"<!doctype html><p>no", "Content-Type: image/png", "Content-Length: 20"),
        "svg": ok(b"<svg/>", "Content-Type: image/svg+xml", "Content-Length: 6"),
        "not-found": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        "forbidden": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
        "broken": b"HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n",
        "partial": b"HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\n\r\nabc",
        "no-content": b"HTTP/1.1 204 No Content\r\n\r\n",
        "not-modified": b"HTTP/1.1 304 Not Modified\r\n\r\n",
        "continue": b"HTTP/1.1 100 Continue\r\n\r\n" * 3,
        "long-head": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 500_000 + b"\r\n\r\n",
        "bad-head": b"HTTP/1.1 200 OK\r\n\x00: \xff\r\n\r\n",
        "nowhere": b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
        "loop": to("/loop"),
        "there": to("/back"),
        "back": to("/there"),
    }
    targets = (
        *(f"http://{host}:{canary}/canary" for host in LOOPBACK if "\\" not in host),
        "http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/latest/meta-data/", "http://10.0.0.1/",
        "http://192.168.1.1/", "//127.0.0.1/", "file:///etc/passwd", "ftp://example.org/x", "gopher://127.0.0.1:70/1",
        "data:image/png;base64,iVBORw0KGgo=", "javascript:alert(1)", "http://a@b/", "\x80\xff", "unix:/run/x.sock",
    )  # fmt: skip
    said |= {f"to-{number}": to(target) for number, target in enumerate(targets)}
    return {f"/{path}": answer for path, answer in said.items()}
