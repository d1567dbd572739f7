"""Files of requests in OpenAI's batch format, answered into another such file.

An input line is `{"custom_id": ..., "method": "POST", "url": "/v1/chat/completions", "body": {...}}`, an output line
`{"id": ..., "custom_id": ..., "response": {"status_code": ..., "request_id": ..., "body": {...}}, "error": null}`, in
whatever order answers come. What stands in the output is not asked again: whoever is killed goes on where he was.
Format: https://platform.openai.com/docs/guides/batch
"""

import asyncio
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from engine.errors import ConfigError
from server.offline.local import LocalServer, RefusedError, Reply

URLS = ("/v1/chat/completions", "/v1/completions")
MAX_ID_CHARS = 512
UNAVAILABLE = 503
OWN_LINE = b'{"id": "batch_'
"""What each line of an output begins with."""
RETRIES, RETRY_SECONDS = 5, 2.0
"""Of a request whose engine has died, which is started again meanwhile."""
_KEYS = {"custom_id", "method", "url", "body"}


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A line of the input."""

    custom_id: str
    url: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Contents:
    """What an input file holds: how many requests, and the models that they name."""

    ids: frozenset[str]
    models: frozenset[str]


def read_requests(path: Path) -> Iterator[BatchRequest]:
    """The requests of a file, one by one. Raises `ConfigError` with the line for what is none."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _request(f"{path.name}:{number}", line)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def look_through(path: Path) -> Contents:
    """Check a whole file before anything is loaded. Raises `ConfigError` for a broken line and for an id twice."""
    ids: set[str] = set()
    models: set[str] = set()
    for request in read_requests(path):
        if request.custom_id in ids:
            raise ConfigError(f"{path.name} has custom_id {request.custom_id!r} twice")
        ids.add(request.custom_id)
        if isinstance(model := request.body.get("model"), str):
            models.add(model)
    return Contents(frozenset(ids), frozenset(models))


def _request(where: str, line: bytes) -> BatchRequest:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: this line is not JSON: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("body"), dict):
        raise ConfigError(f"{where}: a line is an object with custom_id, method, url and body")
    if unknown := found.keys() - _KEYS:
        raise ConfigError(f"{where}: a line has no {min(unknown)!r}; it has custom_id, method, url and body")
    custom_id, url = found.get("custom_id"), found.get("url")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_ID_CHARS:
        raise ConfigError(f"{where}: custom_id is text of 1 to {MAX_ID_CHARS} characters, got {_short(custom_id)}")
    if found.get("method", "POST") != "POST":
        raise ConfigError(f"{where}: method is POST, got {_short(found['method'])}")
    if url not in URLS:
        raise ConfigError(f"{where}: url is one of {', '.join(URLS)}, got {_short(url)}")
    if found["body"].get("stream"):
        raise ConfigError(f"{where}: answers of a batch come whole, got stream: {_short(found['body']['stream'])}")
    return BatchRequest(custom_id, url, found["body"])


def _short(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:80]


class Output:
    """The output file of one run. Made where there is none, and gone on with where there is; `close` it."""

    def __init__(self, path: Path) -> None:
        """Raises `ConfigError` if it cannot be written, if another run writes it, or if it is something else."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
        self._file: IO[bytes] = os.fdopen(descriptor, "r+b")
        self.done: set[str] = set()
        """The ids of what has been answered."""
        self.failed = 0
        """How many of those are errors."""
        try:
            self._lock(path)
            self._read(path)
        except BaseException:
            self._file.close()
            raise

    def _lock(self, path: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"another run writes {path}") from error

    def _read(self, path: Path) -> None:
        """Take up what is there. A last line of ours without its end was cut off by a kill, and is forgotten."""
        whole = 0
        for number, line in enumerate(self._file, 1):
            try:
                if not line.endswith(b"\n"):
                    if line[: len(OWN_LINE)] == OWN_LINE[: len(line)]:
                        break
                    raise ValueError("nothing of ours is lost with it")
                found = json.loads(line)
                self._count(found["custom_id"], found["response"]["status_code"])
            except (ValueError, KeyError, TypeError) as error:
                hint = "name another file for the answers"
                raise ConfigError(f"{path.name}:{number} is no line of a batch's output", hint=hint) from error
            whole += len(line)
        self._file.truncate(whole)

    def _count(self, custom_id: str, status: int) -> None:
        self.done.add(custom_id)
        self.failed += status != 200

    def write(self, request: BatchRequest, reply: Reply) -> None:
        """Add an answer, whole or not at all."""
        request_id = reply.headers.get("x-request-id", "")
        response = {"status_code": reply.status, "request_id": request_id, "body": json.loads(reply.body)}
        line = {"id": f"batch_{request_id}", "custom_id": request.custom_id, "response": response, "error": None}
        self._file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        self._file.flush()
        self._count(request.custom_id, reply.status)

    def close(self) -> None:
        """Let others write it."""
        self._file.close()


async def answer_all(
    server: LocalServer,
    requests: Iterator[BatchRequest],
    output: Output,
    *,
    at_once: int,
    on_answer: Callable[[], None],
) -> None:
    """Ask for what is not in the output yet, so many at a time.

    Raises `RefusedError` once the model is of no more use; what it has not answered is then not in the output.
    """
    slots = asyncio.Semaphore(at_once)
    try:
        async with asyncio.TaskGroup() as group:
            for request in requests:
                if request.custom_id in output.done:
                    continue
                await slots.acquire()
                task = group.create_task(_answer(server, request, output, on_answer))
                task.add_done_callback(lambda task: slots.release())
    except* RefusedError as refused:
        raise refused.exceptions[0] from None


async def _answer(server: LocalServer, request: BatchRequest, output: Output, on_answer: Callable[[], None]) -> None:
    body = json.dumps({**request.body, "model": server.name, "stream": False}).encode()
    for attempt in range(RETRIES + 1):
        reply = await server.ask(request.url, body)
        if reply.status != UNAVAILABLE:
            output.write(request, reply)
            on_answer()
            return
        if attempt < RETRIES:
            await asyncio.sleep(RETRY_SECONDS * 2**attempt)
    reply.json()  # which says why
