"""Running the server: listen, load, announce, serve, and end in good order."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engine import version
from engine.config import EngineConfig
from server.commands.address import allowed_hosts, bind, bind_unix, check_loopback, public_url
from server.commands.banner import Console, ready_banner
from server.commands.keys_watch import KeysWatch
from server.config.keys_file import load_keys_file
from server.context import LOAD_WAIT_SECONDS, ServerContext
from server.edge.auth import Keys
from server.edge.connections import raise_descriptor_limit
from server.edge.cors import Cors
from server.edge.limits import Admission, Limits
from server.edge.queues import ModelQueue, QueueLimits
from server.fleet.fleet import Fleet
from server.fleet.handle import EngineHandle
from server.fleet.policy import FleetPolicy, ModelState, Terms
from server.telemetry.traces import open_traces

if TYPE_CHECKING:
    from server.images.service import ImageService
    from server.prompt.text_pool import TextPool


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeSettings:
    """Everything `headrace serve` was told."""

    models: tuple[EngineConfig, ...]
    """The first is the model of requests that name none."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of these models."""
    terms: Mapping[str, Terms] = field(default_factory=dict)
    """How each model is served; as `Terms` has it where it is not said."""
    queues: Mapping[str, QueueLimits] = field(default_factory=dict)
    """Bounds of each model's queue, where they are not those of all."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of models' weights, where models.yaml tells them."""
    memory_budget: str = "auto"
    """What all models of a device may take together (`devices.budgets`)."""
    load_wait: float = LOAD_WAIT_SECONDS
    """Seconds for which an answer in one piece waits for its model to be loaded."""
    host: str = "127.0.0.1"
    port: int = 8000
    unix_socket: Path | None = None
    """A socket of the file system to listen on, in place of host and port."""
    api_keys: tuple[str, ...] = ()
    admin_keys: tuple[str, ...] = ()
    """Keys that may load and unload models as well."""
    keys_file: Path | None = None
    """Keys with names, rights and limits (`server.config.keys_file`)."""
    insecure: bool = False
    """Other machines may reach it though it asks for no key."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may ask."""
    allowed_hosts: tuple[str, ...] = ()
    drain_seconds: float = 5.0
    """What running requests get to finish once the server is told to end."""
    limits: Limits = field(default_factory=Limits)
    ignore_unknown_fields: bool = False
    """Fields of requests that do not exist are left out and named in a header, not refused."""
    policy: FleetPolicy = field(default_factory=FleetPolicy)
    playground: bool = True
    """Whether there are pages for a browser at the root."""
    vllm_names: bool = True
    """Whether /metrics has the series that vLLM has too under its names as well."""
    traces: str | None = None
    """Where spans of requests go, by OTLP over HTTP."""


def make_keys(settings: ServeSettings) -> Keys:
    """The keys of the command line and of the file. Raises `ConfigError`."""
    entries = None if settings.keys_file is None else load_keys_file(settings.keys_file)
    return Keys(settings.api_keys, settings.admin_keys, entries)


def run(settings: ServeSettings, console: Console) -> int:
    """Serve until told to end; the exit code. Raises `ConfigError` before anything is loaded."""
    keys = make_keys(settings)
    Cors(settings.cors_origins)
    path = settings.unix_socket
    if path is None and not keys.needed and not settings.insecure:
        check_loopback(settings.host, settings.port)
    raise_descriptor_limit()
    with bind(settings.host, settings.port) if path is None else bind_unix(path) as listener:
        return asyncio.run(HeadraceServer(settings, keys, listener, console).run())


class HeadraceServer:
    """One run of the server. Make it inside or outside of the event loop; `run` is the run."""

    def __init__(self, settings: ServeSettings, keys: Keys, listener: socket.socket, console: Console) -> None:
        self._settings = settings
        self.keys = keys
        self._listener = listener
        self._console = console
        self.admission = Admission(settings.limits)
        self.admission.room.is_shared = keys.are_several
        self.fleet = Fleet(
            settings.models,
            settings.policy,
            aliases=settings.aliases,
            terms=settings.terms,
            sizes=settings.sizes,
            budget=settings.memory_budget,
            on_change=self._on_change,
        )
        path = settings.keys_file
        self._keys_watch = None if path is None else KeysWatch(path, keys, self.fleet.meant_by)
        self.queues = {
            name: ModelQueue(name, settings.queues.get(name, QueueLimits()), is_shared=keys.are_several)
            for name in self.fleet.handles
        }
        self.texts: TextPool | None = None
        """What reads long texts; there once the server listens."""
        self.images: ImageService | None = None
        """What looks at images; there once the server listens."""
        self.traces = None if settings.traces is None else open_traces(settings.traces, version())
        self._stop = asyncio.Event()
        self._close = asyncio.Event()
        self._signals = 0

    async def run(self) -> int:
        """Start, wait, stop; the exit code."""
        with self._handle_signals(), self._watch_keys():
            try:
                await self.fleet.start()
                serving = asyncio.create_task(self._serve_http(), name="http")
                failed = await self._wait_for_the_end(serving)
                await self._drain()
                await self._end_processes()
                self._close.set()
                await serving
            finally:
                await self._end_processes()
                if self.traces is not None:
                    await asyncio.to_thread(self.traces.close)
        return 1 if failed else 0

    async def _end_processes(self) -> None:
        pools = [pool.close() for pool in (self.texts, self.images) if pool is not None]
        await asyncio.gather(self.fleet.stop(), *pools)

    async def _serve_http(self) -> None:
        # Imported only now that the engine processes are starting, so that the two go on side by side.
        from server.app import build_app
        from server.edge.http_protocol import HttpServer
        from server.images.service import ImageService
        from server.prompt.text_pool import TextPool

        self.texts, self.images = TextPool(), ImageService()
        context = ServerContext(
            self.fleet,
            self.admission,
            self.texts,
            self.images,
            ignore_unknown_fields=self._settings.ignore_unknown_fields,
            queues=self.queues,
            load_wait=self._settings.load_wait,
            vllm_names=self._settings.vllm_names,
        )
        app = build_app(
            context,
            keys=self.keys,
            hosts=self._hosts(),
            cors=Cors(self._settings.cors_origins),
            playground=self._settings.playground,
            report=None if self.traces is None else self.traces.report,
        )
        limits = self._settings.limits
        server = HttpServer(app, max_connections=limits.max_connections, max_body_bytes=limits.max_body_bytes)
        serving = asyncio.create_task(server.serve(sockets=[self._listener]))
        closed = asyncio.create_task(self._close.wait())
        await asyncio.wait({serving, closed}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        closed.cancel()
        await serving

    def _hosts(self) -> frozenset[str] | None:
        settings = self._settings
        if settings.unix_socket is not None:
            return None  # no web page can lead a browser there
        return allowed_hosts(settings.host, settings.allowed_hosts, needs_key=self.keys.needed)

    async def _wait_for_the_end(self, serving: "asyncio.Task[None]") -> bool:
        """Wait for a signal, or for every model of the start to have failed; the latter is True."""
        loaded = asyncio.create_task(self._announce())
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({serving, stopped, loaded}, return_when=asyncio.FIRST_COMPLETED)
            if loaded.done() and not loaded.result():
                return True
            await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
            return serving.done()
        finally:
            loaded.cancel()
            stopped.cancel()

    async def _announce(self) -> bool:
        """Wait for the loads of the start and print what came of them; whether the server is of any use."""
        await self.fleet.wait_settled()
        loaded = self.fleet.at_start
        if loaded and all(handle.state is ModelState.FAILED for handle in loaded):
            return False
        self._console.line(
            ready_banner(
                public_url(self._listener),
                loaded,
                unix_socket=self._settings.unix_socket,
                version=version(),
                needs_key=self.keys.needed,
                playground=self._settings.playground,
            )
        )
        return True

    async def _drain(self) -> None:
        """Refuse what is new, and give what runs some time."""
        self.admission.drain()
        seconds = self._settings.drain_seconds
        if self.admission.in_flight and seconds:
            self._console.line(
                f"Stopping: {self.admission.in_flight} running requests have {seconds:g} s to finish"
                " (again to stop at once)"
            )
        deadline = asyncio.get_running_loop().time() + seconds
        while self.admission.in_flight and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)

    def _on_change(self, handle: EngineHandle) -> None:
        self._console.progress(handle)
        if handle.state is ModelState.FAILED and handle.error is not None:
            self._console.error(handle.error, handle.name)
        elif handle.state is ModelState.READY:
            self._console.forget_error(handle.name)

    def stop(self) -> None:
        """End the run in good order; the second call ends it at once. To be called in the event loop."""
        self._signals += 1
        self._stop.set()
        if self._signals > 1:
            self.fleet.kill()
            os._exit(1)

    @contextlib.contextmanager
    def _watch_keys(self) -> Iterator[None]:
        if self._keys_watch is None:
            yield
            return
        watching = asyncio.create_task(self._keys_watch.run(), name="keys")
        try:
            yield
        finally:
            watching.cancel()

    def _on_hangup(self) -> Callable[[], None]:
        """What SIGHUP does, which tells a server to read again what it has read, or that its terminal has gone."""
        if self._keys_watch is not None:
            return self._keys_watch.reload
        if os.isatty(0) and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            # The kernel tells of it, and the shell often once more, which is not to cut the end short.
            return lambda: None if self._stop.is_set() else self.stop()
        return lambda: self._console.line("SIGHUP: there is no file of keys (--keys) that could be read again")

    @contextlib.contextmanager
    def _handle_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may listen to signals
            return
        loop = asyncio.get_running_loop()
        handlers: dict[int, Callable[[], None]] = {signal.SIGINT: self.stop, signal.SIGTERM: self.stop}
        handlers[signal.SIGHUP] = self._on_hangup()
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)
