"""The HTTP/1.1 edge below the application: what uvicorn and h11 leave open.

uvicorn waits for ever for a request's headers and for a client that no longer reads, and answers what h11 cannot parse
in plain text. This protocol gives headers a deadline, lets the kernel end connections whose peer takes nothing, and
speaks the API's error shape.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEADER_BYTES = 64 * 1024
"""For uvicorn's `h11_max_incomplete_event_size`: request line and headers together."""
HEADER_SECONDS = 15.0
UNREAD_SECONDS = 60.0
"""How long sent bytes may stay unacknowledged, or the peer's window closed."""

LAST_ANSWERS_SECONDS = 2
"""What connections get to take their last bytes when the server ends."""


class HttpServer(uvicorn.Server):
    """uvicorn as this server runs it: h11, no websockets, no logging of its own, and signals are not its business."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=GuardedH11Protocol,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
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

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class GuardedH11Protocol(H11Protocol):
    """uvicorn's h11 protocol with deadlines. The class attributes are there for tests to shorten."""

    header_seconds = HEADER_SECONDS
    unread_seconds = UNREAD_SECONDS
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Arm both deadlines."""
        super().connection_made(transport)
        raw = transport.get_extra_info("socket")
        if raw is not None and hasattr(socket, "TCP_USER_TIMEOUT") and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self.unread_seconds * 1000))
        self._arm_header_timer()

    def data_received(self, data: bytes) -> None:
        """Parse, and keep the deadline running exactly while a request's headers are incomplete."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._arm_header_timer()
        else:
            self._disarm_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._disarm_header_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP/1.1, or what has too long headers, and close."""
        body = json.dumps(
            {"error": {"message": msg, "type": "invalid_request_error", "param": None, "code": "bad_http"}}
        ).encode()
        self._answer_and_close(400, body)

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
            for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
