"""A whole server with random weights: seconds from its start to the end of its first answer."""

import contextlib
import http.client
import importlib.util
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGES = ("fastapi", "uvicorn", "pydantic", "zmq", "h11", "jinja2", "yaml")
PAUSE = 0.05


def measure_start(model: str, device: str, seconds: float, **settings: str) -> dict[str, Any]:
    """Start, ask until it answers, end. Raises RuntimeError where that takes longer than `seconds`."""
    with running(model, device, seconds, **settings) as (_, found):
        return found


@contextlib.contextmanager
def running(model: str, device: str, seconds: float, **settings: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """A server that answers: its port, and seconds to its first answer. Raises RuntimeError after `seconds` without.

    `settings` are the model's, as in models.yaml.
    """
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise RuntimeError(f"needs {', '.join(absent)}")
    port = free_port()
    with tempfile.TemporaryDirectory() as work:
        models = Path(work) / "models.yaml"
        # JSON is YAML.
        served = {"name": "random", "source": f"random://{model}", "load": "startup", **settings}
        models.write_text(json.dumps({"default": "random", "models": [served]}), encoding="utf-8")
        command = [sys.executable, "-m", "server.commands.cli", "serve", "--models", str(models), "--port", str(port)]
        with open(Path(work) / "log", "w+b") as log:
            began = time.perf_counter()
            server = subprocess.Popen([*command, "--device", device], stdout=log, stderr=log)
            try:
                found = answered(server, port, began, began + seconds)
            except RuntimeError as error:
                log.seek(0)
                tail = log.read().decode(errors="replace").strip().splitlines()[-3:]
                end(server)
                raise RuntimeError(f"{error}: {' / '.join(tail)}") from None
            try:
                yield port, found
            finally:
                end(server)


def answered(server: "subprocess.Popen[bytes]", port: int, began: float, deadline: float) -> dict[str, Any]:
    """Seconds to the first whole answer, and of the one after it."""
    first = None
    while first is None:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with {server.returncode}")
        if time.perf_counter() > deadline:
            raise RuntimeError(f"no answer after {deadline - began:.0f} s")
        first = ask(port)
        time.sleep(0 if first is not None else PAUSE)
    to_first = time.perf_counter() - began
    again = time.perf_counter()
    if ask(port) is None:
        raise RuntimeError("the second request failed")
    return {"first_answer_seconds": to_first, "next_answer_seconds": time.perf_counter() - again}


def ask(port: int) -> int | None:
    """Tokens of an answer, None where there is none yet."""
    answer = _answer(port, "Hello", 8)
    return None if answer is None else int(answer["usage"]["completion_tokens"])


def ask_for(port: int, question: str, max_tokens: int) -> str | None:
    """The words of a greedy answer, None where there is none."""
    answer = _answer(port, question, max_tokens)
    return None if answer is None else str(answer["choices"][0]["message"]["content"])


def _answer(port: int, question: str, max_tokens: int) -> dict[str, Any] | None:
    body = {"model": "random", "messages": [{"role": "user", "content": question}], "max_tokens": max_tokens,
            "temperature": 0}  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        return dict(json.loads(content)) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end(server: "subprocess.Popen[bytes]") -> None:
    """In good order if it goes, else at once."""
    server.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(20)
        return
    server.kill()
    server.wait()
