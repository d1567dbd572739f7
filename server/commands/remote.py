"""`headrace ps`, `headrace load` and `headrace unload`: asking a server that runs."""

import argparse
import http.client
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO
from urllib.parse import quote, urlsplit

from engine.errors import ConfigError, HeadraceError
from server.commands.table import readable_size, write_table

URL_VARIABLE = "HEADRACE_URL"
KEY_VARIABLES = ("HEADRACE_ADMIN_API_KEY", "HEADRACE_API_KEY")
DEFAULT_URL = "http://127.0.0.1:8000"
SECONDS = 60.0
"""Silence of a server after which it is given up; while a model loads it says something every few seconds."""


class RemoteError(HeadraceError):
    """A server cannot be asked, or refuses."""


def add_remote_parsers(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommands; their handlers are in the namespace's `handler`."""
    ps = subparsers.add_parser("ps", help="list the models of a running server", description="List a server's models.")
    ps.set_defaults(handler=_ps)
    load = subparsers.add_parser("load", help="load a model of a running server", description="Load a model.")
    load.set_defaults(handler=lambda options: _change(options, "load"))
    unload = subparsers.add_parser("unload", help="put a model away", description="End a model's process.")
    unload.set_defaults(handler=lambda options: _change(options, "unload"))
    for parser in (ps, load, unload):
        parser.add_argument("--url", help=f"the server's address [{URL_VARIABLE}, else {DEFAULT_URL}]")
    for parser in (load, unload):
        parser.add_argument("name", metavar="MODEL", help="its name or an alias")


def _ps(options: argparse.Namespace) -> int:
    """Print the table."""
    with _Server(options.url) as server:
        models = server.ask("GET", "/v1/models")["data"]
    print_models(models, sys.stdout, now=time.time())
    return 0


def print_models(models: list[dict[str, Any]], out: TextIO, *, now: float) -> None:
    """Write a server's models as a table; `now` is in seconds since 1970."""
    rows = [("MODEL", "STATE", "LOAD", "MEMORY", "DEVICE", "CONTEXT", "REQUESTS", "USED")]
    for model in models:
        memory, used = model["memory_bytes"], model["last_used"]
        rows.append(
            (
                model["id"],
                _state(model),
                model["load"],
                "-" if memory is None else readable_size(memory),
                model.get("device") or "-",
                str(model.get("context_length") or "-"),
                str(model["requests"]),
                "never" if used is None else f"{_readable_time(max(0.0, now - used))} ago",
            )
        )
    write_table(rows, out)
    for model in models:
        if model["error"]:
            out.write(f"\n{model['id']}: {model['error']}\n")


def _change(options: argparse.Namespace, verb: str) -> int:
    """Load or unload a model, telling each stage once."""
    told = ""
    path = f"/admin/models/{quote(options.name, safe='/')}/{verb}"
    with _Server(options.url) as server:
        for model in server.events(path):
            words = f"{model['id']}: {_state(model)}"
            if words != told:
                print(words, flush=True)
            told = words
    return 0


def _state(model: dict[str, Any]) -> str:
    progress = model.get("progress")
    if not progress:
        return str(model["state"])
    fraction = progress["fraction"]
    return str(progress["stage"]) + ("" if fraction is None else f", {round(100 * fraction)} %")


def _readable_time(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


class _Server:
    """One connection to a running server."""

    def __init__(self, url: str | None) -> None:
        self._url = url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
        parts = urlsplit(self._url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{self._url!r} is no address of a server", hint=f"for example {DEFAULT_URL}")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        try:
            self._connection = kind(parts.hostname, parts.port, timeout=SECONDS)
        except ValueError as error:
            raise ConfigError(f"{self._url!r} is no address of a server: {error}") from error
        self._prefix = parts.path.rstrip("/")

    def __enter__(self) -> "_Server":
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
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        return RemoteError(f"{self._url} cannot be asked: {reason}", hint="name another server with --url")
