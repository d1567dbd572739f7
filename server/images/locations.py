"""What may stand in `image_url`: a data URL, or the address of an image on the web, in exactly one spelling.

Parsers of URLs disagree about backslashes, user names, percent signs in hosts, trailing dots and the many ways to spell
an IPv4 address. What two of them could read in two ways is refused, so that what was checked is what is dialled.
Paths of this machine and schemes other than http, https and data are never read.
"""

import base64
import binascii
import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from urllib.parse import quote, unquote_to_bytes

MAX_URL_CHARS = 8192
"""Of an address; data URLs are bound by the bytes they hold."""

_DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=[\w.+\"-]*)*)(;base64)?,", re.ASCII | re.IGNORECASE)
_REMOTE = re.compile(r"(https?)://([^/?#]*)([^?#]*)(\?[^#]*)?(?:#.*)?", re.ASCII | re.IGNORECASE | re.DOTALL)
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?", re.ASCII)
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*", re.ASCII)
_PLAIN = "!$%&'()*+,-./0123456789:;=?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]_abcdefghijklmnopqrstuvwxyz~"
"""Characters of a path or query that stay; others are written with percent signs."""


class LocationError(Exception):
    """What is wrong with an `image_url`, in words for the one who sent it."""


@dataclass(frozen=True, slots=True)
class DataImage:
    """An image that came with the request."""

    content: bytes


@dataclass(frozen=True, slots=True)
class RemoteImage:
    """An image to be fetched. `host` is in lower case, an IPv6 address without brackets; `target` is path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """Host and port as they stand in a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == default_port(self.scheme) else f"{host}:{self.port}"


def default_port(scheme: str) -> int:
    """The port of an address that names none."""
    return 443 if scheme == "https" else 80


def parse_location(url: str, *, max_bytes: int) -> DataImage | RemoteImage:
    """Read an `image_url`; `max_bytes` bounds what a data URL may hold. Raises `LocationError`."""
    if url[:5].lower() == "data:":
        return _parse_data(url, max_bytes)
    return parse_remote(url)


def _parse_data(url: str, max_bytes: int) -> DataImage:
    head = _DATA.match(url)
    if head is None or head[3] is None:
        raise LocationError("a data URL must be of the form data:image/png;base64,...")
    body = url[head.end() :]
    # Four characters hold three bytes; line ends and percent signs make it longer.
    if len(body) > max_bytes * 4:
        raise LocationError(f"the image must have at most {max_bytes} bytes")
    try:
        raw = unquote_to_bytes(body) if "%" in body else body.encode("ascii")
        raw = raw.translate(None, b" \t\r\n")
        content = base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError):
        raise LocationError("the data URL holds no valid base64") from None
    if not content:
        raise LocationError("the data URL holds no bytes")
    if len(content) > max_bytes:
        raise LocationError(f"the image must have at most {max_bytes} bytes, got {len(content)}")
    return DataImage(content)


def parse_remote(url: str) -> RemoteImage:
    """Read an http or https address. Raises `LocationError` for any that could be read in two ways."""
    if len(url) > MAX_URL_CHARS:
        raise LocationError(f"the URL must have at most {MAX_URL_CHARS} characters, got {len(url)}")
    if not re.match(r"https?://", url, re.ASCII | re.IGNORECASE):
        raise LocationError("the URL must begin with https://, http:// or data:")
    if re.search(r"[\x00-\x20\x7f-\xa0\\\u2028\u2029]|\s", url):
        raise LocationError("the URL must hold no spaces, control characters or backslashes")
    parts = _REMOTE.fullmatch(url)
    if parts is None:
        raise LocationError("the URL is not one of the web")
    scheme, authority, path, query = parts[1].lower(), parts[2], parts[3] or "/", parts[4] or ""
    split = _AUTHORITY.fullmatch(authority)
    if "@" in authority:
        raise LocationError("the URL must hold no user name or password")
    if split is None:
        raise LocationError("the URL's host must be a name in ASCII (xn--... where it is not), or an IP address")
    port = int(split[2]) if split[2] else default_port(scheme)
    if not 1 <= port <= 65535:
        raise LocationError(f"the URL's port must be between 1 and 65535, got {port}")
    return RemoteImage(scheme, _checked_host(split[1]), port, quote(path + query, safe=_PLAIN))


def _checked_host(host: str) -> str:
    """A host name or IP address in its one spelling."""
    try:
        if host.startswith("["):
            return IPv6Address(host[1:-1]).compressed
        labels = host.split(".")
        if _NUMBER.fullmatch(labels[-1]):
            return str(IPv4Address(host))  # not 127.1, 0x7f000001, 2130706433 or 0177.0.0.1
    except AddressValueError:
        raise LocationError("the URL's host is no IP address in its usual spelling") from None
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise LocationError("the URL's host is no valid name")
    return host.lower()
