"""One streamed chat completion over HTTP/1.1, read with as little work as possible.

The client shares a small machine with the server it measures, so it parses in the socket's own callback and looks at
nothing but text, usage and errors. Each request opens a connection of its own, whose set-up counts.
"""

import asyncio
import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import msgspec

from engine.errors import ConfigError, HeadraceError


class EndpointError(HeadraceError):
    """A server that is to be measured cannot be asked."""


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


@dataclass(slots=True)
class Reply:
    """What came back. Times are seconds of the monotonic clock."""

    started: float
    times: list[float] = field(default_factory=list)
    """When each chunk with text came."""
    texts: list[str] = field(default_factory=list)
    finished: float = 0.0
    usage: _Usage | None = None
    finish_reason: str | None = None
    error: str | None = None

    @property
    def ttft(self) -> float:
        """Seconds to the first text."""
        return self.times[0] - self.started

    @property
    def gaps(self) -> list[float]:
        """Seconds between chunks with text."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]

    @property
    def output_tokens(self) -> int:
        """By usage where the server gave it, else by chunks."""
        return self.usage.completion_tokens if self.usage and self.usage.completion_tokens else len(self.times)


class Endpoint:
    """A server's `/v1` at a base URL."""

    def __init__(self, url: str, *, api_key: str = "") -> None:
        """`url` may end in `/v1` or not. Raises `ConfigError`."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--url: {url!r} is not an http or https address")
        path = parts.path.rstrip("/")
        self._base = path if path.endswith("/v1") else f"{path}/v1"
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host, self._port = parts.hostname, parts.port or (443 if self._tls else 80)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._headers = f"Host: {parts.netloc}\r\n" + (f"Authorization: Bearer {api_key}\r\n" if api_key else "")
        self._api_key = api_key

    def first_model(self) -> str:
        """The first model the server lists. Raises `EndpointError`."""
        try:
            return str(json.loads(self._get(f"{self._base}/models"))["data"][0]["id"])
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
            reason = getattr(error, "reason", None) or error
            raise EndpointError(
                f"{self._origin}{self._base}/models: {reason}",
                hint="name a server with --url, and its model with --model",
            ) from None

    def is_listening(self) -> bool:
        """Whether anything answers there, whatever it says."""
        try:
            self._get("/health")
        except urllib.error.HTTPError:
            return True
        except (OSError, http.client.HTTPException):
            return False
        return True

    def metrics(self) -> str:
        """What the server says at /metrics; nothing where it has none."""
        try:
            return self._get("/metrics").decode()
        except OSError:
            return ""

    def _get(self, path: str) -> bytes:
        request = urllib.request.Request(f"{self._origin}{path}")  # noqa: S310
        if self._api_key:
            request.add_header("Authorization", f"Bearer {self._api_key}")
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310  the constructor saw to the scheme
            return bytes(answer.read())

    async def chat(self, body: dict[str, Any], *, timeout: float = 600.0, reply: Reply | None = None) -> Reply:
        """Send a streaming request and read it to its end. Failures are in `Reply.error`, never raised.

        A `reply` handed in can be watched while it fills.
        """
        content = msgspec.json.encode(body)
        head = (
            f"POST {self._base}/chat/completions HTTP/1.1\r\n{self._headers}Content-Type: application/json\r\n"
            f"Accept: text/event-stream\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        loop = asyncio.get_running_loop()
        reply = reply or Reply(0.0)
        reply.started = time.perf_counter()
        done: asyncio.Future[None] = loop.create_future()
        transport: asyncio.BaseTransport | None = None
        try:
            transport, protocol = await loop.create_connection(
                lambda: _ChatProtocol(reply, done), self._host, self._port, ssl=self._tls
            )
            protocol.send(head.encode() + content)
            await asyncio.wait_for(done, timeout)
        except TimeoutError:
            reply.error = f"no end after {timeout:g} s"
        except OSError as error:
            reply.error = f"connection: {error}"
        finally:
            reply.finished = time.perf_counter()
            if transport is not None:
                transport.close()
        return reply


class _ChatProtocol(asyncio.Protocol):
    """Reads one answer into a `Reply`."""

    def __init__(self, reply: Reply, done: "asyncio.Future[None]") -> None:
        self._reply = reply
        self._done = done
        self._raw = b""
        self._status = 0
        self._chunked = False
        self._body = b""
        self._saw_done = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, request: bytes) -> None:
        """Write the request."""
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._raw += data
        if not self._status and not self._read_head():
            return
        if self._chunked:
            self._body += b"".join(self._dechunk())
        else:
            self._body, self._raw = self._body + self._raw, b""
        if self._status == 200:
            for event in self._events():
                self._take(event, now)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._status != 200:
            self._fail(f"status {self._status}: {self._body[:300].decode('utf-8', 'replace')}")
        elif not self._saw_done and self._reply.finish_reason is None:
            self._fail("the stream ended early")
        self._end()

    def _read_head(self) -> bool:
        head, found, rest = self._raw.partition(b"\r\n\r\n")
        if found:
            status, _, headers = head.partition(b"\r\n")
            self._status = int(status.split()[1])
            self._chunked = b"transfer-encoding: chunked" in headers.lower()
            self._raw = rest
        return bool(found)

    def _dechunk(self) -> Iterator[bytes]:
        """The whole chunks among the raw bytes; the rest stays there."""
        raw, position = self._raw, 0
        while (line_end := raw.find(b"\r\n", position)) >= 0:
            size = int(raw[position:line_end].partition(b";")[0], 16)
            start = line_end + 2
            if len(raw) < start + size + 2:
                break
            position = start + size + 2
            yield raw[start : start + size]
            if size == 0:
                self._transport.close()  # some servers keep the connection although they were asked not to
        self._raw = raw[position:]

    def _events(self) -> Iterator[bytes]:
        """The payloads of the whole events among the body's bytes; the rest stays there."""
        body = self._body.replace(b"\r\n", b"\n") if b"\r" in self._body else self._body
        *events, self._body = body.split(b"\n\n")
        for event in events:
            for line in event.split(b"\n"):
                if line.startswith(b"data:"):
                    yield line[5:].strip()

    def _take(self, payload: bytes, now: float) -> None:
        if payload == b"[DONE]":
            self._saw_done = True
            return self._end()
        reply = self._reply
        try:
            chunk = _decode(payload)
        except msgspec.DecodeError as error:
            return self._fail(f"a chunk that cannot be read: {error}")
        if chunk.error is not None:
            self._fail(f"error event: {str(chunk.error)[:300]}")
        if chunk.usage is not None:
            reply.usage = chunk.usage
        for choice in chunk.choices:
            if text := choice.delta.content or choice.delta.reasoning_content:
                reply.times.append(now)
                reply.texts.append(text)
            reply.finish_reason = choice.finish_reason or reply.finish_reason

    def _fail(self, message: str) -> None:
        self._reply.error = self._reply.error or message

    def _end(self) -> None:
        if not self._done.done():
            self._done.set_result(None)
