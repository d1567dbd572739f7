"""The HTTP/1.1 edge below the application: what uvicorn and h11 leave open.

uvicorn waits for ever for a request's headers and for a client that no longer reads, answers what h11 cannot parse in
plain text, and closes connections on clients that still write, which costs them the answer. This protocol gives headers
a deadline, lets the kernel end connections whose peer takes nothing, speaks the API's error shape, and before it closes
takes for a while what a client still sends.
"""

import asyncio
import contextlib
import fcntl
import json
import socket
import struct
import termios
from collections.abc import Callable, Iterator
from typing import Any, cast

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from server.edge.connections import Acceptor, most_connections
from server.edge.limits import RETRY_SECONDS
from server.edge.request_head import Refusal, StrictConnection

EXTRA = "is_extra"
"""In the state of requests on connections beyond their limit, which are only told how the server is."""

HEADER_SECONDS = 15.0
UNREAD_SECONDS = 60.0
"""How long sent bytes may stay unacknowledged, or the peer's window closed."""
LINGER_SECONDS = 5.0
LINGER_BYTES = 64 * 1024 * 1024
"""What is taken and thrown away of a client that has been answered before it has sent all."""
LAST_ANSWERS_SECONDS = 2
"""What connections get to take their last bytes when the server ends."""


class HttpServer(uvicorn.Server):
    """uvicorn as this server runs it: h11, no websockets, no logging of its own, and signals are not its business."""

    def __init__(self, app: ASGIApp, *, max_connections: int | None = None, max_body_bytes: int | None = None) -> None:
        """`max_connections` is None for as many as this process's open files allow, `max_body_bytes` for any size."""
        self._max_connections = max_connections
        self._max_body_bytes = max_body_bytes
        super().__init__(
            uvicorn.Config(
                app,
                http=GuardedH11Protocol,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=LAST_ANSWERS_SECONDS,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections on sockets that listen already."""
        await self.lifespan.startup()
        limit = most_connections(self._max_connections)
        self.servers = [
            Acceptor(listener, self._make_protocol, self.server_state.connections, limit)  # type: ignore[arg-type,misc]
            for listener in sockets or ()
        ]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End all connections, those that have their last answers a little later."""
        await super().shutdown(sockets)
        await asyncio.sleep(0)  # what was cancelled answers
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)

    def _make_protocol(self, is_extra: bool) -> "GuardedH11Protocol":
        state = {**self.lifespan.state, EXTRA: True} if is_extra else self.lifespan.state
        protocol = GuardedH11Protocol(self.config, self.server_state, state)
        protocol.conn.max_body_bytes = self._max_body_bytes
        return protocol

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class GuardedH11Protocol(H11Protocol):
    """uvicorn's h11 protocol with deadlines. The class attributes are there for tests to shorten."""

    header_seconds = HEADER_SECONDS
    unread_seconds = UNREAD_SECONDS
    linger_seconds = LINGER_SECONDS
    _header_timer: asyncio.TimerHandle | None = None
    _linger_timer: asyncio.TimerHandle | None = None
    _lingered = 0
    _spoke = False

    conn: StrictConnection

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = StrictConnection()
        self._idle_since = self.loop.time()

    @property
    def idle_since(self) -> float | None:
        """Since when there has been no request, in seconds of the event loop; None while there is one."""
        has_request = self.cycle is not None and not self.cycle.response_complete
        return None if has_request else self._idle_since

    @property
    def spoke(self) -> bool:
        """Whether any byte has come."""
        return self._spoke

    def has_input(self) -> bool:
        """Whether the kernel holds bytes of the client's."""
        raw = self.transport.get_extra_info("socket")
        try:
            (waiting,) = struct.unpack("i", fcntl.ioctl(raw.fileno(), termios.FIONREAD, bytes(4)))
        except OSError:
            return False
        return bool(waiting)

    def evict(self) -> None:
        """End the connection at once; from now on it does not count."""
        self.connections.discard(self)
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(Refusal(503, "All connections of this server are in use", "overloaded"))
        else:
            self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Arm both deadlines."""
        super().connection_made(cast(asyncio.Transport, _GentleTransport(transport, self._linger)))
        raw = transport.get_extra_info("socket")
        if raw is not None and hasattr(socket, "TCP_USER_TIMEOUT") and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self.unread_seconds * 1000))
        self._arm_header_timer()

    def data_received(self, data: bytes) -> None:
        """Parse, and keep the deadline running exactly while a request's headers are incomplete."""
        self._spoke = True
        if self._linger_timer is not None:
            self._lingered += len(data)
            if self._lingered > LINGER_BYTES:
                self.transport.abort()
            return
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._arm_header_timer()
        else:
            self._disarm_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadlines."""
        self._disarm_header_timer()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Note when the connection fell idle."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def shutdown(self) -> None:
        """End the connection once it has no request."""
        if self._linger_timer is None:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no clear HTTP/1.1, or what is too long, and close."""
        self._refuse(self.conn.refusal)

    def _refuse(self, refusal: Refusal) -> None:
        kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
        error = {"message": refusal.message, "type": kind, "param": None, "code": refusal.code}
        self._answer_and_close(refusal.status, json.dumps({"error": error}).encode())

    def _arm_header_timer(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_seconds, self._header_deadline)

    def _disarm_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _header_deadline(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _answer_and_close(self, status: int, body: bytes) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            if status == 503:
                headers.append((b"retry-after", str(RETRY_SECONDS).encode()))
            for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _linger(self, transport: asyncio.Transport) -> bool:
        """Take what the client still sends, if it has not sent all; whether that is so.

        It reads no answer before it has written its request, and would lose one that is followed by a reset.
        """
        if self.conn.their_state not in (h11.SEND_BODY, h11.ERROR) or self.conn.our_state is h11.SEND_BODY:
            return False
        if self._linger_timer is None:
            self._linger_timer = self.loop.call_later(self.linger_seconds, transport.abort)
            self._disarm_header_timer()
            if transport.can_write_eof():
                transport.write_eof()
            transport.resume_reading()
        return True


class _GentleTransport:
    """A transport that asks before it closes. uvicorn closes it in many places, all of them right for others."""

    def __init__(self, transport: asyncio.Transport, linger: Callable[[asyncio.Transport], bool]) -> None:
        self._transport = transport
        self._linger = linger
        self._closing = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Whether it is closed, or will be."""
        return self._closing or self._transport.is_closing()

    def close(self) -> None:
        """Close the connection once the client has sent all, or enough."""
        self._closing = True
        if not self._transport.is_closing() and not self._linger(self._transport):
            self._transport.close()
