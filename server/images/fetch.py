"""Fetching an image from the web for somebody who may not be trusted with our network.

    fetcher = Fetcher(RemotePolicy(hosts=frozenset({"images.example.org"})))
    content = await fetcher.fetch(location)

A host name is resolved once, every address it has must be one that may be dialled, and that very address is dialled,
with the name in the Host header and the TLS handshake. Redirects are followed here, and each passes the same door.
Proxies, cookies, compression and kept connections are not used. What goes wrong is told without saying what is behind
the door: a name that does not resolve and one that leads inside look alike.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from urllib.parse import urljoin

import httpcore2

from server.config.image_policy import RemotePolicy
from server.images.addresses import Address, Network, may_dial
from server.images.locations import LocationError, RemoteImage, default_port, parse_remote

MAX_REDIRECTS = 3
FETCH_SECONDS = 10.0
"""For one image, redirects and all."""
_MAX_ADDRESSES = 32
_REDIRECTS = (301, 302, 303, 307, 308)
_RESOLVER_THREADS = 8
"""A name server that does not answer holds one of these, and nothing else."""

Resolve = Callable[[str, int], Awaitable[list[Address]]]
"""The addresses of a host name. Raises OSError."""


class FetchError(Exception):
    """Why an image could not be had, in words for the one who sent its address."""


def check_policy(policy: RemotePolicy, location: RemoteImage) -> None:
    """Raise `FetchError` unless images may come from there, as far as the address says."""
    if policy.is_off:
        raise FetchError("images are not fetched from other servers here; send them as data URLs")
    own_port = location.port == default_port(location.scheme)
    if (own_port and location.host in policy.hosts) or f"{location.host}:{location.port}" in policy.hosts:
        return
    if not policy.any_host:
        raise FetchError("images are not fetched from this host here")
    if not own_port:
        raise FetchError(f"images are fetched from the ports 80 and 443 only, got {location.port}")


class Fetcher:
    """Fetches images under one policy, at most `max_at_once` at a time. For one event loop."""

    def __init__(
        self,
        policy: RemotePolicy,
        *,
        max_bytes: int,
        max_at_once: int = 16,
        seconds: float = FETCH_SECONDS,
        resolve: Resolve | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """`max_bytes` bounds an image, `seconds` its fetching. The others are for tests."""
        self._policy = policy
        self._max_bytes, self._seconds = max_bytes, seconds
        self._turns = asyncio.Semaphore(max_at_once)
        self._backend = _CheckedBackend(policy.private, resolve or _Resolver())
        self._ssl_context = ssl_context or ssl.create_default_context()

    async def fetch(self, location: RemoteImage) -> bytes:
        """The bytes at an address. Raises `FetchError`."""
        check_policy(self._policy, location)
        async with self._turns:
            try:
                async with asyncio.timeout(self._seconds):
                    return await self._follow(location)
            except TimeoutError:
                raise FetchError(f"the image did not arrive within {self._seconds:g} seconds") from None
            except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError, OSError):
                raise FetchError("the image could not be fetched: its server did not answer as servers do") from None

    async def _follow(self, location: RemoteImage) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            found = await self._ask(location)
            if isinstance(found, bytes):
                return found
            check_policy(self._policy, found)
            location = found
        raise FetchError(f"the image's address leads to another more than {MAX_REDIRECTS} times")

    async def _ask(self, location: RemoteImage) -> bytes | RemoteImage:
        """One request: what it brings, or where it sends us."""
        url = httpcore2.URL(
            scheme=location.scheme.encode(),
            host=location.host.encode(),
            port=location.port,
            target=location.target.encode("ascii"),
        )
        headers = [
            ("Host", location.authority),
            ("Accept", "image/*"),
            ("Accept-Encoding", "identity"),
            ("User-Agent", "headrace"),
            ("Connection", "close"),
        ]
        pool = httpcore2.AsyncConnectionPool(
            ssl_context=self._ssl_context, max_keepalive_connections=0, network_backend=self._backend
        )
        async with pool, pool.stream("GET", url, headers=headers) as response:
            fields = {name.lower(): value for name, value in response.headers}
            if response.status in _REDIRECTS:
                return _redirected(location, fields.get(b"location"))
            if response.status != 200:
                raise FetchError(f"the image's server answered with status {response.status}")
            if fields.get(b"content-encoding", b"identity").strip().lower() not in (b"identity", b""):
                raise FetchError("the image's server sent it compressed, though it was asked not to")
            return await self._read(response, fields.get(b"content-length"))

    async def _read(self, response: httpcore2.Response, length: bytes | None) -> bytes:
        too_large = FetchError(f"the image must have at most {self._max_bytes} bytes")
        if length is not None and length.isdigit() and int(length) > self._max_bytes:
            raise too_large
        content = bytearray()
        async for chunk in response.aiter_stream():
            content += chunk
            if len(content) > self._max_bytes:
                raise too_large
        if not content:
            raise FetchError("the image's server sent no bytes")
        return bytes(content)


def _redirected(location: RemoteImage, target: bytes | None) -> RemoteImage:
    if target is None:
        raise FetchError("the image's server sent us elsewhere, and did not say where")
    here = f"{location.scheme}://{location.authority}{location.target}"
    try:
        found = parse_remote(urljoin(here, target.decode("ascii")))
    except (LocationError, ValueError):
        raise FetchError("the image's server sent us to what is no address of the web") from None
    if location.scheme == "https" and found.scheme != "https":
        raise FetchError("the image's server sent us from https to http")
    return found


class _CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Opens connections, to addresses that may be dialled."""

    def __init__(self, private: Iterable[Network], resolve: Resolve) -> None:
        self._private = tuple(private)
        self._resolve = resolve
        self._dialler = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Resolve, check, and dial what was checked."""
        addresses = await self._addresses(host, port)
        failure: Exception | None = None
        for address in addresses:
            try:
                return await self._dialler.connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore2.NetworkError, httpcore2.TimeoutException) as error:
                failure = error
        assert failure is not None
        raise failure

    async def connect_unix_socket(self, *_: object, **__: object) -> httpcore2.AsyncNetworkStream:
        """Never."""
        raise FetchError("the image could not be fetched")

    async def sleep(self, seconds: float) -> None:
        """Part of the interface."""
        await asyncio.sleep(seconds)

    async def _addresses(self, host: str, port: int) -> list[Address]:
        """All addresses of a host, every one of which may be dialled."""
        try:
            found = [ip_address(host)]
        except ValueError:
            try:
                found = await self._resolve(host, port)
            except (OSError, UnicodeError):
                found = []
        if not found or len(found) > _MAX_ADDRESSES or not all(may_dial(a, self._private) for a in found):
            raise FetchError("the image's host has no public address")
        return found


class _Resolver:
    """The system's resolver, in threads of its own."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="resolve")

    async def __call__(self, host: str, port: int) -> list[Address]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _look_up, host, port)


def _look_up(host: str, port: int) -> list[Address]:
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ip_address(entry[4][0]) for entry in entries))
