"""Where the server listens, and under which names it answers there."""

import contextlib
import ipaddress
import os
import socket
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from engine.errors import ConfigError

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `ConfigError` if the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}: {error.strerror or error}", hint="check --host") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        hint = f"end what uses it, or choose another: headrace serve --port {port + 1}"
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror or error}", hint=hint) from error
    listener.setblocking(False)
    return listener


def check_loopback(host: str, port: int) -> None:
    """Raise `ConfigError` if other machines can reach this address; one that is none is for `bind` to complain of."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return
    for *_, address in found:
        ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
        if not (getattr(ip, "ipv4_mapped", None) or ip).is_loopback:
            raise ConfigError(
                f"other machines can reach {host}, and this server would ask them for no key",
                hint="give it keys (--keys FILE, --api-key, HEADRACE_API_KEY), or say --insecure if all may use it",
            )


@contextlib.contextmanager
def bind_unix(path: Path) -> Iterator[socket.socket]:
    """A listening socket of the file system, for this user alone, which is removed in the end. Raises `ConfigError`.

    One that nobody listens on any more is replaced.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_abandoned(path)
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on the socket {path}: {error.strerror or error}", hint="check --unix-socket"
        ) from error
    listener.setblocking(False)
    try:
        yield listener
    finally:
        listener.close()
        path.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    """Unlink a socket whose server has gone; what else is there is in the way."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)


def allowed_hosts(host: str, others: Iterable[str], *, needs_key: bool) -> frozenset[str] | None:
    """The Host names to answer to, None for any.

    A server that listens on this machine alone and asks for no key is open to any web page whose name its author lets
    point here, so it answers to its own names only. With a key the page would not get in anyway, and on other
    interfaces nobody knows what the server is called.
    """
    if named := tuple(others):
        return frozenset((*named, *LOOPBACK_HOSTS))
    is_loopback = host in ("localhost", "::1") or host.startswith("127.")
    return frozenset((host, *LOOPBACK_HOSTS)) if is_loopback and not needs_key else None


def public_url(listener: socket.socket) -> str:
    """The address to type, of a socket that may listen on all interfaces, or in the file system."""
    if listener.family == socket.AF_UNIX:
        return "http://localhost"
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 (compared, not bound)
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
