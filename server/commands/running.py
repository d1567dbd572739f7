"""Talking to a server that runs: over HTTP, with the operator's key."""

import argparse
import http.client
import json
import os
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

from engine.errors import ConfigError, HeadraceError

URL_VARIABLE = "HEADRACE_URL"
KEY_VARIABLES = ("HEADRACE_ADMIN_API_KEY", "HEADRACE_API_KEY")
DEFAULT_URL = "http://127.0.0.1:8000"
UNIX_SCHEME = "unix"
"""Of the address of a server that listens on a socket of the file system: unix:///run/headrace.sock."""
SECONDS = 60.0
"""Silence of a server after which it is given up; while a model loads it says something every few seconds."""


class RemoteError(HeadraceError):
    """A server cannot be asked, or refuses."""


def add_url(parser: argparse.ArgumentParser) -> None:
    """The option that says which server is asked."""
    at = f"{UNIX_SCHEME}:///PATH of a server with --unix-socket PATH"
    parser.add_argument("--url", help=f"the server's address, or {at} [{URL_VARIABLE}, else {DEFAULT_URL}]")


def state_words(model: dict[str, Any]) -> str:
    """A model's state in words; of one that loads, where its load stands."""
    progress = model.get("progress")
    if not progress:
        return str(model["state"])
    fraction = progress["fraction"]
    return str(progress["stage"]) + ("" if fraction is None else f", {round(100 * fraction)} %")


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a socket of the file system."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket, each time that there is no connection."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(SECONDS)
        self.sock.connect(self._path)


def _connection_to(url: str) -> tuple[http.client.HTTPConnection, str]:
    """A connection, not made yet, and what paths begin with there. Raises `ValueError` for what is no address."""
    parts = urlsplit(url)
    if parts.scheme == UNIX_SCHEME:
        if parts.netloc or not parts.path.strip("/"):
            raise ValueError("three slashes and a path follow unix:")
        return _UnixConnection(unquote(parts.path)), ""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it begins with http://, https:// or unix:// and names a place")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname, parts.port, timeout=SECONDS), parts.path.rstrip("/")


class RunningServer:
    """One connection to a running server."""

    def __init__(self, url: str | None) -> None:
        self._url = url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
        try:
            self._connection, self._prefix = _connection_to(self._url)
        except ValueError as error:
            hint = f"for example {DEFAULT_URL} or {UNIX_SCHEME}:///run/headrace.sock"
            raise ConfigError(f"{self._url!r} is no address of a server: {error}", hint=hint) from error

    def __enter__(self) -> "RunningServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(self, method: str, path: str) -> dict[str, Any]:
        """The JSON of an answer. Raises `RemoteError`."""
        try:
            found: dict[str, Any] = json.loads(self._answer(method, path).read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._broken(error) from error
        return found

    def text(self, path: str) -> str:
        """The text of an answer. Raises `RemoteError`."""
        try:
            return self._answer("GET", path).read().decode()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._broken(error) from error

    def events(self, path: str) -> Iterator[dict[str, Any]]:
        """The events of a stream. Raises `RemoteError`, also for the error of a stream that failed."""
        answer = self._answer("POST", path, b'{"stream": true}')
        try:
            for line in answer:
                if line.startswith(b"data: {"):
                    event = json.loads(line.removeprefix(b"data: "))
                    if "error" in event and "id" not in event:
                        raise RemoteError(str(event["error"]["message"]))
                    yield event
                elif line.startswith(b"data: [DONE]"):
                    return
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._broken(error) from error
        raise RemoteError(f"{self._url} ended the stream before its end")

    def _answer(self, method: str, path: str, body: bytes | None = None) -> http.client.HTTPResponse:
        headers = {} if body is None else {"Content-Type": "application/json"}
        key = next((key for name in KEY_VARIABLES if (key := os.environ.get(name, "").split())), None)
        if key:
            headers["Authorization"] = f"Bearer {key[0]}"
        try:
            self._connection.request(method, self._prefix + path, body, headers)
            answer = self._connection.getresponse()
            if answer.status != 200:
                raise self._refused(answer.status, answer.read())
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error
        return answer

    def _refused(self, status: int, body: bytes) -> RemoteError:
        try:
            message = str(json.loads(body)["error"]["message"])
        except (ValueError, LookupError, TypeError):
            message = f"{self._url} answered {status}"
        hint = f"put a key into {KEY_VARIABLES[0]}" if status in (401, 403) else None
        return RemoteError(message, hint=hint)

    def _broken(self, error: Exception) -> RemoteError:
        self._connection.close()  # nothing more can be read from it; the next question makes another
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        return RemoteError(f"{self._url} cannot be asked: {reason}", hint="name another server with --url")
