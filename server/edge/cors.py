"""Which pages of other origins a browser lets read the answers: none, unless the operator names them.

Cookies are no part of this API, so none are ever allowed: a page needs the key itself.
"""

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from engine.errors import ConfigError

ANY_ORIGIN = "*"
PREFLIGHT_SECONDS = 600
"""How long a browser may remember what it was allowed."""
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")
_EXPOSED = ", ".join(
    (
        "retry-after",
        "retry-after-ms",
        "x-should-retry",
        "x-headrace-relaxed",
        "x-headrace-unused",
        "x-request-id",
        *(f"x-ratelimit-{name}-{unit}" for unit in ("requests", "tokens") for name in ("limit", "remaining", "reset")),
    )
)

Header = tuple[bytes, bytes]


class Cors:
    """The origins whose pages may ask."""

    def __init__(self, origins: Iterable[str] = ()) -> None:
        """Each is an origin as browsers write it (`https://app.example:8443`), or `*`. Raises `ConfigError`."""
        self._origins = frozenset(_checked(origin) for origin in origins)

    def __bool__(self) -> bool:
        return bool(self._origins)

    def headers(self, request: Headers) -> list[Header]:
        """What every answer says."""
        if not self._origins:
            return []
        vary = [] if ANY_ORIGIN in self._origins else [(b"vary", b"origin")]
        allowed = self._allowed(request.get("origin"))
        if allowed is None:
            return vary
        return [
            (b"access-control-allow-origin", allowed),
            (b"access-control-expose-headers", _EXPOSED.encode()),
            *vary,
        ]

    def is_preflight(self, method: str, request: Headers) -> bool:
        """Whether a browser asks, before a request of an allowed page, whether it may send it. That needs no key."""
        return (
            method == "OPTIONS"
            and "access-control-request-method" in request
            and self._allowed(request.get("origin")) is not None
        )

    def preflight_headers(self) -> list[Header]:
        """What the answer to that says beside `headers`."""
        return [
            (b"access-control-allow-methods", b"GET, HEAD, POST"),
            # A star means any header but this one. Clients add some of their own.
            (b"access-control-allow-headers", b"authorization, *"),
            (b"access-control-max-age", str(PREFLIGHT_SECONDS).encode()),
        ]

    def _allowed(self, origin: str | None) -> bytes | None:
        if origin is None:
            return None
        if ANY_ORIGIN in self._origins:
            return b"*"
        return origin.encode("latin-1") if origin in self._origins else None


def _checked(origin: str) -> str:
    if origin == ANY_ORIGIN:
        return origin
    complaint = ConfigError(
        f"{origin!r} is no origin: a scheme, a host and perhaps a port, as browsers send it",
        hint="for example --cors-origin https://app.example, or '*' for any",
    )
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError as error:
        raise complaint from error
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    default = {"http": 80, "https": 443}.get(parts.scheme)
    written = f"{parts.scheme}://{host}" + ("" if port in (None, default) else f":{port}")
    if parts.scheme not in ("http", "https") or written != origin or not _HOST.fullmatch(parts.hostname or ""):
        raise complaint
    return origin
