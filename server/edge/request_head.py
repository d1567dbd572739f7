"""h11's connection, which refuses what two parties could read differently.

h11 takes line feeds without a carriage return, folded headers and fields that are given twice. A proxy that reads such
a request otherwise than this server would check one request and pass on another (RFC 9112, section 11.2), so all of it
is a 400 here, for the head of a request as for the lines behind a chunked body. What is too long is a 431, or a 414 if
it is the request line.
"""

import re
from dataclasses import dataclass
from typing import Any

import h11
from h11._receivebuffer import ReceiveBuffer

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers together, of which one may take it all."""
SINGLE_FIELDS = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"expect",
        b"host",
        b"transfer-encoding",
        b"x-request-id",
    }
)
"""Fields that are read here and have one value."""
_LONE_BREAK = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_FOLD = re.compile(rb"\r\n[ \t]")
_REQUEST_LINE = re.compile(rb"[!-~]+ [!-~]+ HTTP/1\.([01])")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_ABSOLUTE = re.compile(rb"https?://([^/?#@]+)(/[^#]*)?(\?[^#]*)?", re.IGNORECASE)
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[^\r\n]*)?\r\n")
_MAX_CHUNK_LINE = 1024
_LENGTH = re.compile(rb"[0-9]+")


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a request is refused that is no clear HTTP."""

    status: int
    message: str
    code: str


BAD_HTTP = Refusal(400, "Invalid HTTP request received.", "bad_http")


class StrictConnection(h11.Connection):
    """The server's side of one connection."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self.refusal = BAD_HTTP
        """Of what was refused, once `next_event` has raised `h11.RemoteProtocolError`."""
        self.max_body_bytes: int | None = None
        """More than this a chunked body may not announce."""
        self._announced = 0
        self._receive_buffer = _StrictBuffer(self)

    def next_event(self) -> Any:
        """As h11's; a target in absolute form is taken apart, and its host is the request's (RFC 9112, 3.2.2)."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._announced = 0
            if not event.target.startswith((b"/", b"*")) and (absolute := _ABSOLUTE.fullmatch(event.target)):
                host, path, query = absolute.groups()
                others = [(name, value) for name, value in event.headers.raw_items() if name.lower() != b"host"]
                return h11.Request(
                    method=event.method,
                    target=(path or b"/") + (query or b""),
                    headers=[(b"Host", host), *others],
                    http_version=event.http_version,
                )
        return event

    def check_chunk_line(self, data: bytes) -> None:
        """Raise `h11.RemoteProtocolError` for the first line of a chunk, perhaps in part, that is wrong or too much."""
        end = data.find(b"\r\n")
        line = data[: end + 2] if end >= 0 else data
        if _LONE_BREAK.search(line) or len(line) > _MAX_CHUNK_LINE:
            raise self._refused("The line before a chunk must end with a carriage return and a line feed")
        if end < 0:
            return
        size = _CHUNK_SIZE.fullmatch(line)
        if size is None:
            raise self._refused("The line before a chunk must hold its size as 1 to 16 hexadecimal digits")
        self._announced += int(size[1], 16)
        if self.max_body_bytes is not None and self._announced > self.max_body_bytes:
            raise self._refused(
                f"The request body is larger than {self.max_body_bytes} bytes", 413, "request_too_large"
            )

    def check_lines(self, data: bytes, is_whole: bool) -> None:
        """Raise `h11.RemoteProtocolError` for what is wrong with the lines that have come, the last perhaps in part."""
        is_head = self.their_state is h11.IDLE
        if len(data) > MAX_HEAD_BYTES:
            if is_head and b"\r\n" not in data[:MAX_HEAD_BYTES]:
                raise self._refused(f"The request line is longer than {MAX_HEAD_BYTES} bytes", 414, "uri_too_long")
            raise self._refused(f"The headers are longer than {MAX_HEAD_BYTES} bytes", 431, "headers_too_large")
        if _LONE_BREAK.search(data):
            raise self._refused("Lines must end with a carriage return and a line feed, and hold neither elsewhere")
        if _FOLD.search(data):
            raise self._refused("Headers must not be folded")
        if _CONTROL.search(data):
            raise self._refused("Headers must hold no control characters")
        if is_head:
            self._check_head(data, is_whole)
        elif any(line and b":" not in line for line in data.split(b"\r\n")[:-1]):
            raise self._refused("What follows the last chunk must be headers")

    def _check_head(self, data: bytes, is_whole: bool) -> None:
        line, found, rest = data.partition(b"\r\n")
        if not found:
            return
        version = _REQUEST_LINE.fullmatch(line)
        if version is None:
            raise self._refused("The request line must name a method, a target, and HTTP/1.1 or HTTP/1.0")
        target = line.split(b" ")[1]
        if target != b"*" and not target.startswith(b"/") and not _ABSOLUTE.fullmatch(target):
            raise self._refused("The request's target must be a path, or an address that begins with http://")
        if not is_whole:
            return
        fields = [(name.lower(), value.strip()) for name, _, value in (f.partition(b":") for f in rest.split(b"\r\n"))]
        names = [name for name, _ in fields]
        if version[1] == b"1" and b"host" not in names:
            raise self._refused("HTTP/1.1 needs the header Host")
        twice = next((name for name in SINGLE_FIELDS if names.count(name) > 1), None)
        if twice is not None:
            raise self._refused(f"The header {twice.decode()} is given more than once")
        if b"transfer-encoding" in names and version[1] == b"0":
            raise self._refused("HTTP/1.0 has no Transfer-Encoding")
        if b"transfer-encoding" in names and b"content-length" in names:
            raise self._refused("Content-Length and Transfer-Encoding exclude each other")
        if any(name == b"content-length" and not _LENGTH.fullmatch(value) for name, value in fields):
            raise self._refused("Content-Length must be one whole number")

    def _refused(self, message: str, status: int = 400, code: str = "bad_http") -> h11.RemoteProtocolError:
        self.refusal = Refusal(status, message, code)
        return h11.RemoteProtocolError(message, error_status_hint=status)


class _StrictBuffer(ReceiveBuffer):
    """Looks at lines before h11 makes them up: once it has split them, a bare line feed does not show."""

    def __init__(self, connection: StrictConnection) -> None:
        super().__init__()
        self._connection = connection
        self._skipped = False

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The lines up to the first blank one, None while it is missing. Raises `h11.RemoteProtocolError`."""
        if self._connection.their_state is h11.IDLE and self._data[:2] == b"\r\n" and not self._skipped:
            # Some clients send an empty line behind a body, before the next request (RFC 9112, section 2.2).
            self._skipped = True
            self._extract(2)
        if self._data[:2] == b"\r\n":
            return super().maybe_extract_lines()
        end = self._data.find(b"\r\n\r\n")
        self._connection.check_lines(bytes(self._data[: end + 4 if end >= 0 else None]), end >= 0)
        self._skipped = self._skipped and end < 0
        return super().maybe_extract_lines()

    def maybe_extract_next_line(self) -> bytearray | None:
        """The first line of a chunk, None while it is missing. Raises `h11.RemoteProtocolError`."""
        self._connection.check_chunk_line(bytes(self._data[: _MAX_CHUNK_LINE + 1]))
        return super().maybe_extract_next_line()
