"""The engine process: `python -m engine.process ENDPOINT [PULSE]`, with its EngineConfig as msgpack on standard input.

Loads the model, telling how far it is, then turns messages into steps and steps into messages until it is told to
end, or its parent dies. PULSE is the descriptor of a pipe (`engine.pulse`).
"""

import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec
import zmq

from engine.config import EngineConfig
from engine.errors import HeadraceError
from engine.lifetime import die_with_parent, give_memory_back
from engine.messages import (
    MAX_FRAME_BYTES,
    AbortRequest,
    AddImage,
    AddRequest,
    AskCached,
    Asleep,
    Cached,
    EngineInfo,
    Inbound,
    LoadFailed,
    Loading,
    Outbound,
    Ready,
    Shutdown,
    Sleep,
    StepOutputs,
    Wake,
    decode_inbound,
    encode,
)
from engine.pulse import Pulse
from engine.ranks.team import Team

if TYPE_CHECKING:
    from engine.engine import Engine

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0
KEPT_PRODUCTS = 128
"""Of what oneDNN makes for products of one shape, how many it keeps: the newest ones, some 0.3 MiB each.

Prompts are cut into pieces of any length, and its own bound of 1,024, which holds twice, lets a process grow by
hundreds of MiB for as long as new lengths come.
"""


class Pipe:
    """The engine's end of the socket pair."""

    def __init__(self, endpoint: str, pulse: Pulse) -> None:
        self.pulse = pulse
        self.directory = Path(endpoint.removeprefix("ipc://")).parent if endpoint.startswith("ipc://") else None
        """Where the socket is, which only this user can enter."""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.connect(endpoint)
        self._lock = threading.Lock()
        self._is_ready = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wake_read, zmq.POLLIN)

    def send(self, message: Outbound) -> None:
        """Send one message, waiting if the other side does not read."""
        with self._lock:
            self._is_ready = self._is_ready or isinstance(message, Ready)
            self._socket.send(encode(message))

    def leave(self, failure: HeadraceError) -> NoReturn:
        """End this process from another thread, where its own is stuck; a failure to load is told before.

        While it loads, its own thread does nothing with the socket but to send.
        """
        self.pulse.say(failure.message)
        with self._lock:
            if not self._is_ready:
                self._socket.send(encode(LoadFailed(message=failure.message, hint=failure.hint)))
                self.close()
            os._exit(1)

    def receive(self, timeout: float) -> list[Inbound]:
        """All messages that are there, waiting up to `timeout` seconds for the first, or for `wake`."""
        messages: list[Inbound] = []
        if timeout:
            self._poller.poll(int(timeout * 1000))
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
        while True:
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            try:
                messages.append(decode_inbound(frame))
            except msgspec.DecodeError as error:
                logger.error("dropped a frame that is not a message: %s", error)
        return messages

    def wake(self) -> None:
        """End a `receive` that waits, from any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    def close(self) -> None:
        """Send what is left and release the socket."""
        self._socket.close()
        self._context.term()


def load_engine(config: EngineConfig, pipe: Pipe) -> "tuple[Engine, EngineInfo]":
    """Load the model. Raises HeadraceError."""
    started = time.monotonic()
    pipe.send(Loading(stage="starting the engine"))
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # of oneDNN itself, and of torch's use of it
        os.environ.setdefault(name, str(KEPT_PRODUCTS))
    team = None
    if config.tensor_parallel > 1:  # they import torch meanwhile
        team = Team.start(config, pipe.directory, pipe.leave)
    from engine.build import build_engine  # imports torch, which takes seconds: the first message goes out before

    engine, info = build_engine(
        config, lambda stage, fraction: pipe.send(Loading(stage=stage, fraction=fraction)), wake=pipe.wake, team=team
    )
    return engine, msgspec.structs.replace(info, load_seconds=time.monotonic() - started)


def wake(engine: "Engine", info: EngineInfo, pipe: Pipe) -> None:
    """Bring a model back. Where that fails this process ends, to be started again."""
    pipe.send(Loading(stage="waking up"))
    engine.wake()
    pipe.send(Ready(info=info))


def serve(engine: "Engine", pipe: Pipe, info: EngineInfo) -> int:
    """Turn messages into steps and steps into messages, until told to end; the exit code.

    It is 1 where the engine cannot go on in this process: whoever supervises it starts another.
    """
    last_sent = 0.0
    has_worked = False
    while True:
        was_busy = engine.has_work
        has_worked = has_worked or was_busy
        messages = pipe.receive(0 if was_busy else HEARTBEAT_SECONDS)
        if has_worked and not was_busy and not messages:
            # What steps and grammars have freed is kept by the C library, in an arena of each thread.
            give_memory_back()
            has_worked = False
        for message in messages:
            match message:
                case AddRequest():
                    engine.add(message)
                case AddImage():
                    engine.add_image(message)
                case AbortRequest(request_ids=request_ids, index=index):
                    engine.abort(request_ids, index)
                case AskCached():
                    pipe.send(Cached(message.question_id, engine.count_cached(message)))
                case Sleep():
                    pipe.send(Asleep(*engine.sleep()))
                case Wake():
                    wake(engine, info, pipe)
                case Shutdown():
                    return 0
        if outputs := engine.take_outputs():
            # A step can take seconds; who is queued or refused should not wait for its end.
            pipe.send(StepOutputs(outputs=outputs, stats=engine.stats()))
        outputs = engine.step()
        now = time.monotonic()
        if outputs or now - last_sent >= HEARTBEAT_SECONDS or (was_busy and not engine.has_work):
            pipe.send(StepOutputs(outputs=outputs, stats=engine.stats()))
            last_sent = now
        if engine.failure is not None:
            pipe.pulse.say(engine.failure)
            logger.error("the engine cannot go on in this process: it ends, to be started again")
            return 1


def begin() -> tuple[EngineConfig, Pipe]:
    """What this process is to do, and the pipe to the one that started it and without which it ends."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the API process decides
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    config = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=EngineConfig)
    pipe = Pipe(sys.argv[1], Pulse(int(sys.argv[2]) if sys.argv[2:] else None))
    pipe.pulse.begin()
    return config, pipe


def main() -> int:
    """Entry point of the process."""
    config, pipe = begin()
    try:
        engine, info = load_engine(config, pipe)
    except HeadraceError as error:
        pipe.send(LoadFailed(message=error.message, hint=error.hint))
        pipe.close()
        return 1
    except Exception as error:
        logger.exception("loading %s failed", config.name)
        pipe.send(LoadFailed(message=f"{config.name}: loading failed: {type(error).__name__}: {error}"))
        pipe.close()
        return 1
    gc.collect()
    gc.freeze()  # nothing loaded so far is ever garbage; the collector need not look at it again
    engine.warm_up()
    pipe.send(Ready(info=info))
    code = serve(engine, pipe, info)
    if code:
        pipe.close()  # what follows may take long where something is stuck
    engine.close()
    pipe.close()
    if config.tensor_parallel > 1:
        sys.stderr.flush()
        os._exit(code)  # what waits for other ranks in destructors would wait for ever
    return code


if __name__ == "__main__":
    sys.exit(main())
