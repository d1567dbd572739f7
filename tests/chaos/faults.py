"""What can happen to a server. Each does its harm, says whom it may have hurt, and leaves nothing behind of its own."""

import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import psutil

from tests.chaos.crowd import Asker, Outcome
from tests.chaos.site import Site

LONG = 300
"""Tokens of an answer that somebody turns away from."""


@dataclass
class Harm:
    """What a fault has done."""

    hurt: set[str] = field(default_factory=set)
    """Models whose clients may be told an error instead of an answer."""
    outcomes: list[Outcome] = field(default_factory=list)
    """What became of requests that are part of the fault."""


Fault = Callable[[Site, Asker, random.Random], Harm]


def killed(site: Site, asker: Asker, lot: random.Random) -> Harm:
    """An engine ends at once, as for want of memory."""
    model = lot.choice(site.models)
    _kill(site, model)
    return Harm({model})


def stopped(site: Site, asker: Asker, lot: random.Random) -> Harm:
    """An engine stands still for some seconds: its clients wait, and are answered."""
    engine = site.engine(lot.choice(site.models))
    assert engine is not None
    engine.suspend()
    time.sleep(lot.uniform(1, 4))
    engine.resume()
    return Harm()


def full_disk(site: Site, asker: Asker, lot: random.Random) -> Harm:
    """No file can be written any more, by the server or by what it starts; then an engine has to be started."""
    model = lot.choice(site.models)
    with limited(site.process, psutil.RLIMIT_FSIZE, 0):
        _kill(site, model)
        time.sleep(lot.uniform(3, 6))
    return Harm({model})


def failed_allocation(site: Site, asker: Asker, lot: random.Random) -> Harm:
    """An engine gets no more memory, while a long prompt asks for some."""
    model = lot.choice(site.models)
    engine = site.engine(model)
    assert engine is not None
    try:
        with limited(engine, psutil.RLIMIT_AS, engine.memory_info().vms):
            outcome = asker.ask(asker.body(model, f"{lot.random()} " + "word " * 60, max_tokens=LONG // 3))
    except psutil.NoSuchProcess:
        return Harm({model})  # it has not survived
    return Harm({model}, [outcome])


def slow_reader(site: Site, asker: Asker, lot: random.Random) -> Harm:
    """Somebody asks for a long stream and reads nothing for a while; the rest is there all the same."""
    model = lot.choice(site.models)
    with closing(_connect(site, asker, model)) as connection:
        time.sleep(lot.uniform(1, 4))
        connection.settimeout(asker.patience)
        received = b""
        while b"data: [DONE]" not in received and (piece := connection.recv(65536)):
            received += piece
    whole = b"data: [DONE]" in received
    return Harm(outcomes=[Outcome(model, "answered" if whole else "lost", "" if whole else "a slow reader's stream")])


def client_gone(site: Site, asker: Asker, lot: random.Random) -> Harm:
    """Several clients leave, some before their answer has begun and some in the middle of it."""
    for _ in range(6):
        connection = _connect(site, asker, lot.choice(site.models))
        time.sleep(lot.choice((0.0, 0.3)))
        # Closed with a reset, as by a machine that has gone.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
    return Harm()


def corrupt_weights(site: Site, asker: Asker, lot: random.Random) -> Harm:
    """An engine ends, and what it is to be loaded from is cut short or no file of weights any more."""
    model, content = site.models[1], site.weights.read_bytes()
    broken = content[: len(content) // 2] if lot.random() < 0.5 else lot.randbytes(4096)
    _write(site, broken)
    _kill(site, model)
    time.sleep(lot.uniform(4, 7))
    _write(site, content)
    return Harm({model})


def killed_compiler(site: Site, asker: Asker, lot: random.Random) -> Harm:
    """What compiles constraints ends while there is one to compile."""
    model, outcomes = lot.choice(site.models), []
    names = [f"{lot.randrange(10**9)}" for _ in range(40)]
    properties = {name: {"type": "string", "pattern": "^[a-z]{1,20}$"} for name in names}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    shape = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": False}}
    body = asker.body(model, "Write JSON.", response_format=shape)
    asking = threading.Thread(target=lambda: outcomes.append(asker.ask(body)))
    asking.start()
    time.sleep(lot.uniform(0.0, 0.1))
    for compiler in site.compilers():
        compiler.kill()
    asking.join()
    for other in site.models:
        outcomes.append(asker.ask(asker.body(other, "Write JSON.", response_format={"type": "json_object"})))
    return Harm({model}, outcomes)


FAULTS: dict[str, Fault] = {
    "SIGKILL": killed,
    "SIGSTOP": stopped,
    "full disk": full_disk,
    "failed allocation": failed_allocation,
    "slow reader": slow_reader,
    "client gone": client_gone,
    "corrupt weights": corrupt_weights,
    "killed compiler": killed_compiler,
}


@contextmanager
def limited(process: psutil.Process, limit: int, value: int) -> Iterator[None]:
    """A process, and what it starts, with less of something; afterwards as before. Raises `psutil.NoSuchProcess`."""
    before = process.rlimit(limit)
    process.rlimit(limit, (value, before[1]))
    try:
        yield
    finally:
        process.rlimit(limit, before)


def _kill(site: Site, model: str) -> None:
    engine = site.engine(model)
    assert engine is not None, "both models have an engine before a fault"
    os.kill(engine.pid, signal.SIGKILL)


def _write(site: Site, content: bytes) -> None:
    """In the place of the file: what has it open keeps the old one."""
    new = site.weights.with_suffix(".new")
    new.write_bytes(content)
    new.replace(site.weights)


def _connect(site: Site, asker: Asker, model: str) -> socket.socket:
    """A connection with a small buffer, on which a long stream has been asked for."""
    address = urlsplit(site.served.url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((address.hostname, address.port))
    body = json.dumps(asker.body(model, "Tell me a story.", max_tokens=LONG, stream=True)).encode()
    connection.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    return connection
