"""The fleet: one supervised engine process for each model.

A model is loading, then ready. If its engine process dies, everybody who waits for it is told, and it is started anew
after a pause that grows; after too many deaths in a short time it has failed and stays so. No model touches another.
"""

import asyncio
import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from engine.client import EngineClient
from engine.config import EngineConfig
from engine.errors import ConfigError, EngineDeadError, HeadraceError, ModelLoadError
from engine.messages import EngineInfo, Loading
from server.config.image_policy import RemotePolicy
from server.config.names import ModelNames
from server.config.settings import SamplingDefaults, describe_defaults
from server.fleet.engine_process import ENGINE_COMMAND, EngineProcess, describe_exit
from server.markup.formats import ToolsSetting

if TYPE_CHECKING:
    from server.prompt.tokenizer import ChatTokenizer

logger = logging.getLogger(__name__)

MAX_SOCKET_PATH = 90
"""Unix socket paths may have 107 bytes; the rest is for the file name."""


class ModelState(StrEnum):
    """Where a model stands."""

    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetPolicy:
    """Times and limits of the supervision, in seconds."""

    command: tuple[str, ...] = ENGINE_COMMAND
    """Program of the engine process; the endpoint is appended."""
    first_restart_delay: float = 0.5
    """Pause before the first restart; each further death within the window doubles it."""
    max_restart_delay: float = 30.0
    max_crashes: int = 5
    """Deaths within the window after which a model has failed for good."""
    crash_window: float = 600.0
    stale_after: float = 15.0
    """Silence after which an engine is not called ready."""
    hang_after: float = 120.0
    """Silence after which an engine is replaced. It speaks after each step, and once a second when idle."""
    stop_grace: float = 3.0
    """What an engine gets to end by itself."""


class EngineHandle:
    """One model through all runs of its engine process."""

    def __init__(
        self,
        config: EngineConfig,
        policy: FleetPolicy,
        *,
        defaults: SamplingDefaults | None = None,
        tools: ToolsSetting | None = None,
        images: RemotePolicy | None = None,
        on_change: Callable[["EngineHandle"], None] = lambda handle: None,
    ) -> None:
        """`on_change` is called at each change of state and each step of loading; it must not raise."""
        self.config = config
        self.name = config.name
        self.defaults = defaults or SamplingDefaults()
        self.tools: ToolsSetting | None = tools
        self.images = images or RemotePolicy()
        """Where images of its requests may be fetched from."""
        self.state = ModelState.LOADING
        self.progress: Loading | None = None
        self.error: HeadraceError | None = None
        """Why the model has failed or is being restarted."""
        self.info: EngineInfo | None = None
        self.tokenizer: ChatTokenizer | None = None
        self.restarts = 0
        self.created = int(time.time())
        self._policy = policy
        self._on_change = on_change
        self._process: EngineProcess | None = None
        self._crashes: list[float] = []
        self._task: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()

    @property
    def client(self) -> EngineClient | None:
        """The conversation with the running engine process, None while there is none to be used."""
        return self._process.client if self.state is ModelState.READY and self._process is not None else None

    @property
    def pid(self) -> int | None:
        """Process id of the engine, None while there is none."""
        return self._process.pid if self._process is not None else None

    @property
    def is_live(self) -> bool:
        """Whether the model is loaded and its engine was heard of lately."""
        client = self.client
        return client is not None and time.monotonic() - client.last_heard < self._policy.stale_after

    async def start(self, directory: Path) -> None:
        """Spawn the engine process and supervise it from now on. Raises `OSError` if it cannot be spawned."""
        self._process = await self._spawn(directory)
        self._task = asyncio.create_task(self._supervise(directory), name=f"supervise {self.name}")

    async def wait_settled(self) -> ModelState:
        """Wait until the first load has ended, one way or the other."""
        await self._settled.wait()
        return self.state

    async def stop(self) -> None:
        """End the engine process and its supervision. Idempotent."""
        self._set(ModelState.STOPPED)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        process, self._process = self._process, None
        if process is not None:
            await process.stop(self._policy.stop_grace)

    def kill(self) -> None:
        """SIGKILL the engine process."""
        if self._process is not None:
            self._process.kill()

    async def _spawn(self, directory: Path) -> EngineProcess:
        process = await EngineProcess.spawn(self.config, directory, self._policy.command)
        process.client.on_loading = self._on_loading
        return process

    async def _supervise(self, directory: Path) -> None:
        while True:
            error = await self._live()
            process, self._process = self._process, None
            if process is not None:
                await process.stop(0.0)
            delay = self._next_delay()
            if self.info is None or delay is None:
                self.error = self._final_error(error)
                self._set(ModelState.FAILED)
                return
            self.error = error
            self._set(ModelState.RESTARTING)
            logger.error("%s; starting it again in %.1f s", error, delay)
            await asyncio.sleep(delay)
            self.restarts += 1
            with contextlib.suppress(OSError):
                self._process = await self._spawn(directory)

    async def _live(self) -> HeadraceError:
        """One run of the process, to its end; why it ended."""
        process = self._process
        if process is None:
            return EngineDeadError(f"the engine process of model {self.name} could not be started")
        try:
            info = await process.client.wait_ready()
            if self.tokenizer is None or self.info is None or info.model_dir != self.info.model_dir:
                self.tokenizer = await asyncio.to_thread(_load_tokenizer, info.model_dir, self.tools)
        except HeadraceError as error:
            return error
        if self.info is None:
            logger.info("model %s: %s", self.name, describe_defaults(self.defaults, info.generation_defaults))
        self.info = info
        self.error = None
        self._set(ModelState.READY)
        watchdog = asyncio.create_task(self._watch_silence(process), name=f"watchdog {self.name}")
        try:
            code = await process.wait()
        finally:
            watchdog.cancel()
        return EngineDeadError(f"the engine of model {self.name} {describe_exit(code)}")

    async def _watch_silence(self, process: EngineProcess) -> None:
        silent = 0
        interval = min(1.0, self._policy.hang_after / 4)
        while silent < 2:
            await asyncio.sleep(interval)
            # Twice, since after a pause of this very process the frames that came meanwhile are read only now.
            silent = silent + 1 if time.monotonic() - process.client.last_heard > self._policy.hang_after else 0
        logger.error("the engine of model %s said nothing for %.0f s: replacing it", self.name, self._policy.hang_after)
        process.abort()
        await asyncio.sleep(1.0)
        process.kill()

    def _next_delay(self) -> float | None:
        """Count a death; the pause before the next start, None when there were too many."""
        now = time.monotonic()
        self._crashes = [*(at for at in self._crashes if now - at < self._policy.crash_window), now]
        if len(self._crashes) >= self._policy.max_crashes:
            return None
        return float(
            min(self._policy.first_restart_delay * 2 ** (len(self._crashes) - 1), self._policy.max_restart_delay)
        )

    def _final_error(self, error: HeadraceError) -> HeadraceError:
        if self.info is None:
            if isinstance(error, EngineDeadError):
                hint = (
                    "the lines above say what it was doing; if it was killed, give it less with --context or --memory"
                )
                return ModelLoadError(f"{error} while loading", hint=hint)
            return error
        minutes = self._policy.crash_window / 60
        return EngineDeadError(
            f"{error}; that was death {self._policy.max_crashes} within {minutes:g} minutes, so it stays down",
            hint="restart the server once the cause is found; the engine's last lines are in the log",
        )

    def _on_loading(self, progress: Loading) -> None:
        self.progress = progress
        self._on_change(self)

    def _set(self, state: ModelState) -> None:
        if self.state is ModelState.STOPPED:
            return
        self.state = state
        if state is not ModelState.LOADING:
            self._settled.set()
        self._on_change(self)


class Fleet:
    """All models of this server."""

    def __init__(
        self,
        configs: Iterable[EngineConfig],
        policy: FleetPolicy | None = None,
        *,
        aliases: Mapping[str, str] | None = None,
        defaults: Mapping[str, SamplingDefaults] | None = None,
        tools: Mapping[str, ToolsSetting] | None = None,
        images: Mapping[str, RemotePolicy] | None = None,
        on_change: Callable[[EngineHandle], None] = lambda handle: None,
    ) -> None:
        policy = policy or FleetPolicy()
        self.handles = {
            config.name: EngineHandle(
                config,
                policy,
                defaults=(defaults or {}).get(config.name),
                tools=(tools or {}).get(config.name),
                images=(images or {}).get(config.name),
                on_change=on_change,
            )
            for config in configs
        }
        self._names = ModelNames(aliases or {})
        self._directory: Path | None = None

    async def start(self) -> None:
        """Spawn every engine process; returns before they are loaded. Raises `ConfigError` if one cannot be spawned."""
        self._directory = _private_directory()
        try:
            for handle in self.handles.values():
                await handle.start(self._directory)
        except OSError as error:
            await self.stop()
            raise ConfigError(f"the engine process cannot be started: {error}") from error

    async def wait_settled(self) -> None:
        """Wait until each model's first load has ended."""
        await asyncio.gather(*(handle.wait_settled() for handle in self.handles.values()))

    def get(self, name: str) -> EngineHandle | None:
        """The model of that name or alias."""
        handle = self.handles.get(name)
        if handle is None and (full := self._names.full(name)) is not None:
            handle = self.handles.get(full)
        return handle

    async def stop(self) -> None:
        """End all engine processes. Idempotent."""
        await asyncio.gather(*(handle.stop() for handle in self.handles.values()))
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def kill(self) -> None:
        """SIGKILL all engine processes and leave nothing on disk; for an end that waits for nobody."""
        for handle in self.handles.values():
            handle.kill()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)


def _private_directory() -> Path:
    """A new directory that only this user can enter, with a path short enough for a socket."""
    path = tempfile.mkdtemp(prefix="headrace-")
    if len(path) > MAX_SOCKET_PATH:
        shutil.rmtree(path)
        path = tempfile.mkdtemp(prefix="headrace-", dir="/tmp")
    return Path(path)


def _load_tokenizer(model_dir: str, tools: ToolsSetting | None) -> "ChatTokenizer":
    # Imported here, so that the engine process is running before this process reads in its text libraries.
    from server.prompt.tokenizer import ChatTokenizer

    try:
        return ChatTokenizer.load(Path(model_dir), tools=tools)
    except HeadraceError:
        raise
    except Exception as error:  # whatever a broken file makes the tokenizer library raise, only this model fails
        raise ModelLoadError(f"the model's tokenizer cannot be read: {error}") from error
