"""Fetching goes where it may and nowhere else: a canary on loopback hears nothing, whatever leads there."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from server.config.image_policy import RemotePolicy
from server.images.addresses import Address
from server.images.fetch import Fetcher, FetchError
from server.images.locations import parse_remote
from tests.clocks import PATIENCE

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
BODY = b"\x89PNG and so on"
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Site:
    """A web server that says what it is told to say, and notes who came."""

    port: int = 0
    heads: list[str] = field(default_factory=list)
    connections: int = 0

    def url(self, path: str = "/x.png", host: str = "images.test") -> str:
        return f"http://{host}:{self.port}{path}"


@asynccontextmanager
async def site(*answers: bytes | Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Site]:
    """A server on loopback with one answer for each request in turn, the last for all further ones."""
    running = Site()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.connections += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            running.heads.append(head.decode())
            answer = answers[min(len(running.heads), len(answers)) - 1]
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        running.port = server.sockets[0].getsockname()[1]
        yield running


def ok(body: bytes = BODY, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", *(headers or (f"Content-Length: {len(body)}",)), "", ""]
    return "\r\n".join(lines).encode() + body


def to(target: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()


def names(**addresses: list[str]) -> Callable[[str, int], Awaitable[list[Address]]]:
    """A resolver that knows these hosts, `_` standing for dots."""

    async def resolve(host: str, port: int) -> list[Address]:
        try:
            return [ip_address(text) for text in addresses[host.replace(".", "_")]]
        except KeyError:
            raise OSError("unknown") from None

    return resolve


def fetcher(*hosts: str, private: tuple = LOOPBACK, **options: object) -> Fetcher:
    """Of the given hosts, which are on loopback."""
    options.setdefault("resolve", names(images_test=["127.0.0.1"], other_test=["127.0.0.1"]))
    policy = RemotePolicy(hosts=frozenset(hosts), private=private)
    return Fetcher(policy, **{"max_bytes": 1000, "seconds": PATIENCE, **options})  # type: ignore[arg-type]


async def fetch(url: str, *hosts: str, **options: object) -> bytes:
    return await fetcher(*hosts, **options).fetch(parse_remote(url))


def refused(awaitable: Awaitable[bytes]) -> str:
    async def run() -> str:
        with pytest.raises(FetchError) as caught:
            await awaitable
        return str(caught.value)

    return asyncio.run(run())


def with_site(*answers: bytes | Answer, ask: Callable[[Site], Awaitable[bytes]]) -> tuple[bytes | str, Site]:
    """What a fetch brings or says, and what the site saw."""

    async def run() -> tuple[bytes | str, Site]:
        async with site(*answers) as running:
            try:
                return await ask(running), running
            except FetchError as error:
                return str(error), running

    return asyncio.run(run())


# ---- what works


def test_an_image_is_fetched_with_the_name_of_its_host_and_nothing_of_ours() -> None:
    content, seen = with_site(ok(), ask=lambda at: fetch(at.url("/a.png?b=c"), f"images.test:{at.port}"))
    assert content == BODY
    (head,) = seen.heads
    assert head.startswith("GET /a.png?b=c HTTP/1.1\r\n") and f"Host: images.test:{seen.port}\r\n" in head
    assert "cookie" not in head.lower() and "authorization" not in head.lower()
    assert "Accept-Encoding: identity" in head


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_three_times(status: int) -> None:
    answers = [to("/b", status), to("c", status)]

    async def run() -> tuple[bytes, list[str]]:
        async with site(*answers, ok()) as at:
            return await fetch(at.url(), f"images.test:{at.port}"), at.heads

    content, heads = asyncio.run(run())
    assert content == BODY and [head.split()[1] for head in heads] == ["/x.png", "/b", "/c"]
    said, seen = with_site(to("/again"), ask=lambda at: fetch(at.url(), f"images.test:{at.port}"))
    assert "more than 3 times" in str(said) and len(seen.heads) == 4


def test_chunks_and_bodies_without_a_length_are_read() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n\x89PNG\r\n0\r\n\r\n"
    for answer, expected in ((chunked, b"\x89PNG"), (ok(BODY, "Content-Type: image/png"), BODY)):
        assert with_site(answer, ask=lambda at: fetch(at.url(), f"images.test:{at.port}"))[0] == expected


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate of images.test, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, the program, is not installed")
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=images.test"]
    command += [
        "-addext",
        "subjectAltName=DNS:images.test",
        "-keyout",
        str(folder / "key"),
        "-out",
        str(folder / "crt"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "both").write_bytes((folder / "key").read_bytes() + (folder / "crt").read_bytes())
    return folder / "both"


def test_https_checks_the_certificate_against_the_name(certificate: Path) -> None:
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate))

    async def run() -> None:
        async with site(ok(), tls=server_side) as at:
            secure = at.url().replace("http:", "https:")
            hosts = (f"images.test:{at.port}", f"other.test:{at.port}")
            assert await fetch(secure, *hosts, ssl_context=trusting) == BODY
            for url, context in ((secure.replace("images", "other"), trusting), (secure, None)):
                with pytest.raises(FetchError, match="did not answer as servers do"):
                    await fetch(url, *hosts, ssl_context=context)
            assert len(at.heads) == 1

    asyncio.run(run())


# ---- where it does not go


PLACES = [
    "http://127.0.0.1:{port}/",
    "http://[::1]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[64:ff9b::7f00:1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://0.0.0.0:{port}/",
    "http://localhost:{port}/",
    "http://inside.test:{port}/",
    "http://mixed.test:{port}/",
    "http://nowhere.test:{port}/",
]
INSIDE = names(
    localhost=["127.0.0.1"],
    inside_test=["127.0.0.1"],
    mixed_test=["93.184.215.14", "127.0.0.1"],
    images_test=["127.0.0.1"],
)


@pytest.mark.parametrize("place", PLACES)
def test_a_canary_on_loopback_hears_nothing(place: str) -> None:
    def ask(at: Site) -> Awaitable[bytes]:
        location = parse_remote(place.format(port=at.port))
        policy = RemotePolicy(hosts=frozenset({f"{location.host}:{location.port}"}))
        return Fetcher(policy, max_bytes=1000, resolve=INSIDE).fetch(location)

    said, seen = with_site(ok(), ask=ask)
    assert said == "the image's host has no public address" and seen.connections == 0


@pytest.mark.parametrize("place", PLACES)
def test_redirects_lead_to_no_canary(place: str) -> None:
    async def run() -> None:
        async with site(ok()) as canary:
            target = place.format(port=canary.port)
            host = parse_remote(target).host
            async with site(to(target)) as at:
                policy = RemotePolicy(
                    hosts=frozenset({f"images.test:{at.port}", f"{host}:{canary.port}"}),
                )
                # The first hop is let through by name, as a public site would be.
                once = Fetcher(policy, max_bytes=1000, resolve=INSIDE)
                once._backend._private = _FirstOnly()  # type: ignore[assignment]
                with pytest.raises(FetchError, match="no public address"):
                    await once.fetch(parse_remote(at.url()))
                assert at.connections == 1 and canary.connections == 0

    asyncio.run(run())


class _FirstOnly(tuple):
    """Networks that hold every address, the first time they are looked at."""

    looked_at = 0

    def __iter__(self):  # type: ignore[no-untyped-def]
        self.looked_at += 1
        return iter(LOOPBACK if self.looked_at == 1 else ())


def test_a_name_that_changes_its_mind_is_asked_once_a_hop() -> None:
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> list[Address]:
        asked.append(host)
        return [ip_address("127.0.0.1" if len(asked) == 1 else "127.0.0.2")]

    content, _ = with_site(ok(), ask=lambda at: fetch(at.url(), f"images.test:{at.port}", resolve=rebinding))
    assert content == BODY and asked == ["images.test"]


def test_hosts_that_are_not_listed_are_not_even_looked_up() -> None:
    async def never(host: str, port: int) -> list[Address]:
        raise AssertionError("looked up")

    for url in (
        "https://evil.test/",
        "https://images.test:8443/",
        "https://sub.images.test/",
        "https://images.test.evil/",
    ):
        assert "not fetched from this host" in refused(fetch(url, "images.test", resolve=never))
    off = Fetcher(RemotePolicy(), max_bytes=1000, resolve=never)
    assert "send them as data URLs" in refused(off.fetch(parse_remote("https://images.test/")))
    anywhere = Fetcher(RemotePolicy(any_host=True), max_bytes=1000, resolve=never)
    assert "ports 80 and 443 only, got 22" in refused(anywhere.fetch(parse_remote("http://images.test:22/")))


@pytest.mark.parametrize(
    "target",
    [
        "file:///etc/passwd",
        "ftp://images.test/",
        "http://a@b/",
        "http://127.1/",
        "\x80\xff",
        "",
        "data:image/png;base64,AAAA",
    ],
)
def test_redirects_to_what_is_no_web_address(target: str) -> None:
    answer = b"HTTP/1.1 302 Moved\r\nLocation: " + target.encode("latin-1") + b"\r\nContent-Length: 0\r\n\r\n"
    said, seen = with_site(answer, ask=lambda at: fetch(at.url(), f"images.test:{at.port}"))
    # An empty target is the same place again.
    assert "no address of the web" in said if target else "more than 3 times" in said, said  # type: ignore[operator]
    assert seen.connections == (1 if target else 4)


# ---- what comes back


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def slow(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


async def silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (endless, "at most 1000 bytes"),
        (slow, "did not arrive within 0.5 seconds"),
        (silent, "did not arrive within 0.5 seconds"),
        (ok(b"x" * 1001), "at most 1000 bytes"),
        (ok(b"", "Content-Length: 99999999999999999999"), "at most 1000 bytes"),
        (ok(b"abc", "Content-Length: 10"), "did not answer as servers do"),
        (ok(b"abc", "Content-Length: -1"), "did not answer as servers do"),
        (ok(b"abc", "Content-Length: 3", "Content-Length: 4"), "did not answer as servers do"),
        (ok(b"abc", "Content-Encoding: gzip"), "compressed"),
        (ok(b""), "no bytes"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "status 404"),
        (b"HTTP/1.1 206 Partial\r\nContent-Length: 3\r\n\r\nabc", "status 206"),
        (b"HTTP/1.1 302 Moved\r\nContent-Length: 0\r\n\r\n", "did not say where"),
        (b"SSH-2.0-OpenSSH\r\n", "did not answer as servers do"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n", "did not answer as servers do"),
        (b"", "did not answer as servers do"),
    ],
)
def test_bodies_that_are_no_image_end_in_time(answer: bytes | Answer, said: str) -> None:
    seconds = 0.5 if answer in (slow, silent) else PATIENCE
    found, _ = with_site(answer, ask=lambda at: fetch(at.url(), f"images.test:{at.port}", seconds=seconds))
    assert said in str(found) and "127.0.0.1" not in str(found)


def test_nothing_is_told_of_what_lies_behind_a_name() -> None:
    missing = refused(fetch("http://nowhere.test/", "nowhere.test", resolve=INSIDE))
    inside = refused(fetch("http://inside.test/", "inside.test", private=(), resolve=INSIDE))
    assert missing == inside
