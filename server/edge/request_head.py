"""h11's connection, which refuses what two parties could read differently.

h11 takes line feeds without a carriage return, folded headers and fields that are given twice. A proxy that reads such
a request otherwise than this server would check one request and pass on another (RFC 9112, section 11.2), so all of it
is a 400 here, for the head of a request as for the lines behind a chunked body. What is too long is a 431, or a 414 if
it is the request line.
"""

import re
from dataclasses import dataclass

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
        self._receive_buffer = _StrictBuffer(self)

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
        if is_head:
            self._check_head(data, is_whole)

    def _check_head(self, data: bytes, is_whole: bool) -> None:
        line, found, rest = data.partition(b"\r\n")
        if not found:
            return
        version = _REQUEST_LINE.fullmatch(line)
        if version is None:
            raise self._refused("The request line must name a method, a target, and HTTP/1.1 or HTTP/1.0")
        if not is_whole:
            return
        fields = [(name.lower(), value.strip()) for name, _, value in (f.partition(b":") for f in rest.split(b"\r\n"))]
        names = [name for name, _ in fields]
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

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The lines up to the first blank one, None while it is missing. Raises `h11.RemoteProtocolError`."""
        if self._data[:2] == b"\r\n":
            return super().maybe_extract_lines()
        end = self._data.find(b"\r\n\r\n")
        self._connection.check_lines(bytes(self._data[: end + 4 if end >= 0 else None]), end >= 0)
        return super().maybe_extract_lines()
