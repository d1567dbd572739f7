"""What a request may cost before any work is done for it: bytes, seconds, and a place among the others."""

import asyncio
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Receive

from server.edge.rooms import Room
from server.protocol.errors import DRAINING, ApiError, bad_request, overloaded

_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
"""UTF-8, and what is a part of it."""
MIB = 1024 * 1024
RETRY_SECONDS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Bounds of the whole server."""

    max_body_bytes: int = 20 * MIB
    body_seconds: float = 30.0
    """From the first look at the body to its last byte."""
    max_buffered_bytes: int = 512 * MIB
    """All bodies at once that are being read, or whose text is being worked on."""
    max_requests: int = 1024
    """Choices admitted and not yet answered."""
    max_connections: int | None = None
    """None: as many as this process's open files allow."""


class ClientGone(Exception):
    """The client left before its request was whole; nobody is there to be answered."""


class _BodyTooLargeError(Exception):
    pass


class Ticket:
    """A place among the running requests. `release` may be called any number of times."""

    def __init__(self, room: Room, owner: bytes, cost: int) -> None:
        self._room = room
        self._owner = owner
        self._cost = cost
        room.take(owner, cost)

    def release(self) -> None:
        """Give the place back."""
        self._room.give_back(self._owner, self._cost)
        self._cost = 0


class Body:
    """The bytes of a request, which count among those in memory. `release` may be called any number of times."""

    def __init__(self, admission: "Admission", raw: bytes) -> None:
        self._admission = admission
        self.raw = raw
        admission.buffered += len(raw)

    def release(self) -> None:
        """Forget the bytes."""
        self._admission.buffered -= len(self.raw)
        self.raw = b""


class Admission:
    """Counts what runs and refuses what would be too much, before any work."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.room = Room(limits.max_requests)
        self.refused = 0
        self.draining = False
        self.buffered = 0
        """Bytes of bodies."""
        self._reading: set[asyncio.Timeout] = set()

    @property
    def in_flight(self) -> int:
        """Choices admitted and not yet answered."""
        return self.room.used

    @property
    def is_full(self) -> bool:
        """Whether the next request would be refused."""
        return self.in_flight >= self.limits.max_requests

    def drain(self) -> None:
        """Refuse what comes from now on, and what has not come whole."""
        self.draining = True
        for deadline in self._reading:
            deadline.reschedule(asyncio.get_running_loop().time())

    def check(self, cost: int = 1, owner: bytes = b"") -> None:
        """Raise `ApiError` 503 with Retry-After if `cost` more choices of this owner's find no place, 400 if they never
        could.
        """
        if self.draining:
            raise overloaded("The server is shutting down", retry_after=RETRY_SECONDS, reason=DRAINING)
        if cost > self.limits.max_requests:
            raise bad_request(
                f"This request asks for {cost} answers, and this server gives {self.limits.max_requests} at once",
                param="n",
            )
        if missing := self.room.lacks(owner, cost):
            self.refused += 1
            share = ", of which a key may have half of what others leave" if self.room.is_shared() else ""
            raise overloaded(
                f"The server is full: {self.in_flight} of {self.limits.max_requests} places are taken{share},"
                f" and this request needs {cost}",
                retry_after=self.room.retry_after(missing),
                reason="max_requests",
            )

    def admit(self, cost: int, owner: bytes = b"") -> Ticket:
        """Take `cost` places. Raises as `check` does."""
        self.check(cost, owner)
        return Ticket(self.room, owner, cost)

    async def read_json_body(self, headers: Headers, receive: Receive) -> "Body":
        """The whole body of a JSON request, to be released once it is of no more use.

        Raises `ApiError` 415 for another type or an encoding, 413 for too many bytes, 408 for too slow ones, 503 if
        other bodies fill the memory set aside for them; `ClientGone` if the client leaves.
        """
        _check_type(headers)
        try:
            async with asyncio.timeout(self.limits.body_seconds) as deadline:
                self._reading.add(deadline)
                try:
                    body = await self._read(headers, receive)
                finally:
                    self._reading.discard(deadline)
        except _BodyTooLargeError:
            raise ApiError(
                413, f"The request body is larger than {self.limits.max_body_bytes} bytes", code="request_too_large"
            ) from None
        except TimeoutError:
            if self.draining:
                raise overloaded("The server is shutting down", retry_after=RETRY_SECONDS, reason=DRAINING) from None
            raise ApiError(
                408, f"The request body did not arrive within {self.limits.body_seconds:g} s", code="request_timeout"
            ) from None
        return Body(self, body)

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        limit = self.limits.max_body_bytes
        declared = headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > limit:
            raise _BodyTooLargeError
        parts: list[bytes] = []
        size = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                size += len(part)
                self.buffered += len(part)
                if size > limit:
                    raise _BodyTooLargeError
                if self.buffered > self.limits.max_buffered_bytes:
                    raise overloaded(
                        "Too many large requests at once", retry_after=RETRY_SECONDS, reason="large_bodies"
                    )
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
        finally:
            self.buffered -= size


def _check_type(headers: Headers) -> None:
    content_type = headers.get("content-type", "")
    kind, *parameters = (part.strip().lower() for part in content_type.split(";"))
    if kind != "application/json":
        raise ApiError(
            415, f"The content type must be application/json, got {content_type[:100]!r}", code="unsupported_media_type"
        )
    given = [
        (name.strip(), value.strip().strip('"')) for name, _, value in (part.partition("=") for part in parameters)
    ]
    charsets = [(name, value) for name, value in given if name.rstrip("*0123456789") == "charset"]
    if len(charsets) > 1 or any(name != "charset" or value not in _CHARSETS for name, value in charsets):
        raise ApiError(400, f"The charset must be UTF-8, got {content_type[:100]!r}", code="bad_http")
    encoding = headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise ApiError(
            415, f"Request bodies must not be encoded, got {encoding[:100]!r}", code="unsupported_media_type"
        )
