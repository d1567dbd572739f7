"""One model, loaded or not: its state, what is known of it, and who waits for it.

A model is unloaded, loading, ready; on a GPU it may be asleep. `Supervision` keeps its engine process running: if that
dies everybody who waits for it is told, and it is started anew; after too many deaths in a short time it has failed. No
model touches another.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.client import EngineClient
from engine.config import EngineConfig
from engine.errors import HeadraceError, ModelLoadError
from engine.messages import Asleep, EngineInfo, Loading
from server.config.sampling_defaults import describe_defaults
from server.fleet.deaths import Failures
from server.fleet.holders import Holders
from server.fleet.policy import FleetPolicy, ModelState, Terms
from server.fleet.supervision import Supervision
from server.markup.formats import ToolsSetting

if TYPE_CHECKING:
    from server.prompt.tokenizer import ChatTokenizer

logger = logging.getLogger(__name__)

_OF_A_PROCESS = frozenset({ModelState.READY, ModelState.RESTARTING, ModelState.FAILED})
"""What the supervision says; of a process that is being ended it has nothing to say any more."""


class EngineHandle:
    """One model, whether there is an engine process for it or not. When there is one `Residency` decides."""

    def __init__(
        self,
        config: EngineConfig,
        policy: FleetPolicy,
        *,
        terms: Terms | None = None,
        on_change: Callable[["EngineHandle"], None] = lambda handle: None,
    ) -> None:
        """`on_change` is called at each change of state and each step of loading; it must not raise."""
        self.config = config
        self.name = config.name
        self.terms = terms or Terms()
        self.supervision = Supervision(config, policy, self)
        """Of the processes that it has had, and has."""
        self.state = ModelState.UNLOADED
        self.progress: Loading | None = None
        self.error: HeadraceError | None = None
        """Why the model has failed or is being restarted."""
        self.failures = Failures(policy)
        """Of loads, since the last that did not fail."""
        self.is_missing = False
        """Whether it has failed, and has not been ready or given up since."""
        self.info: EngineInfo | None = None
        """What the engine said of itself; that of the last load stays when the model is unloaded."""
        self.tokenizer: ChatTokenizer | None = None
        self.capabilities: dict[str, Any] | None = None
        """What can be asked of it, as /v1/models tells it; known once it has been loaded."""
        self.holders = Holders()
        self.is_away = False
        """Whether its engine has put the model away, so that it is to be woken instead of started."""
        self.is_closed = False
        """Whether a ready model takes no new requests, because another has waited long enough for its memory."""
        self.ready_since = 0.0
        self.created = int(time.time())
        self._policy = policy
        self._on_change = on_change
        self._spawning = asyncio.Lock()
        """Held while a process is being made that nobody could end yet."""
        self._settled = asyncio.Event()
        self._gone = asyncio.Event()
        self._gone.set()

    @property
    def client(self) -> EngineClient | None:
        """The conversation with the running engine process, None while there is none to be used.

        Whoever was asking is told of a death at once, a moment before the state says so.
        """
        process = self.supervision.process
        if self.state is not ModelState.READY or process is None or process.client.is_dead:
            return None
        return process.client

    @property
    def pid(self) -> int | None:
        """Process id of the engine, None while there is none."""
        process = self.supervision.process
        return process.pid if process is not None else None

    @property
    def is_live(self) -> bool:
        """Whether the model is loaded and its engine was heard of lately."""
        client = self.client
        return client is not None and time.monotonic() - client.last_heard < self._policy.stale_after

    @property
    def standing(self) -> str:
        """Its state as it is told: a ready model may be `stalled`, its engine silent, or `yielding`.

        The latter takes no new requests until another has been loaded that waits for its memory.
        """
        if self.state is not ModelState.READY:
            return self.state.value
        return "stalled" if not self.is_live else "yielding" if self.is_closed else "ready"

    @property
    def is_asleep(self) -> bool:
        """Whether nobody would miss its process now."""
        return self.state is ModelState.ASLEEP

    @property
    def is_refusing(self) -> bool:
        """Whether it has failed so lately that nobody should try again."""
        return self.state is ModelState.FAILED and self.failures.is_too_soon

    def expect(self, stage: str | None = None) -> None:
        """It will be loaded; `stage` says what it waits for first."""
        self.error = None
        self.progress = None if stage is None else Loading(stage)
        self._settled.clear()
        self._set(ModelState.LOADING)

    async def start(self, directory: Path, *, kv_limit: int = 0) -> None:
        """Spawn the engine process and supervise it from now on. Raises `OSError` if it cannot be spawned.

        `directory` holds its socket; an automatic KV cache takes at most `kv_limit` bytes, if it is not 0. Where the
        load has been called off by now nothing is spawned.
        """
        async with self._spawning:
            if self.state in (ModelState.STOPPED, ModelState.UNLOADING):
                return
            if self.state is not ModelState.LOADING:
                self.expect()
            await self.supervision.start(directory, kv_limit)

    async def wait_settled(self) -> ModelState:
        """Wait until the load has ended, one way or the other."""
        await self._settled.wait()
        return self.state

    def close(self, *, closed: bool) -> None:
        """Whether new requests of a ready model wait, instead of being answered; those who wait no longer go on."""
        if closed != self.is_closed:
            self.is_closed = closed
            self._set(self.state)

    def retire(self) -> None:
        """From now on no request gets it: it is about to be unloaded."""
        self._set(ModelState.UNLOADING)

    async def wait_gone(self) -> None:
        """Wait until no process is being ended."""
        await self._gone.wait()

    async def sleep(self) -> Asleep:
        """Put a retired model away, but keep its process; what that frees and takes. Raises `EngineDeadError`."""
        process = self.supervision.process
        assert process is not None, "only what was ready sleeps"
        away = await process.client.sleep()
        self.is_away = True
        self.progress = None
        self._set(ModelState.LOADING if self.holders.waiting else ModelState.ASLEEP)
        return away

    async def wake(self) -> None:
        """Bring a model back that is away. Raises `HeadraceError` where its engine ends; it is started anew then."""
        process = self.supervision.process
        assert process is not None, "what sleeps has a process"
        began = time.monotonic()
        process.client.wake()
        await process.client.wait_ready()
        self.is_away = False
        self.ready_since = time.monotonic()
        logger.info("model %s is awake after %.1f s", self.name, self.ready_since - began)
        self._set(ModelState.READY)

    async def unload(self) -> None:
        """End the engine process; when this returns, its memory is free. Who waits for the model goes on waiting."""
        self.retire()
        await self._end()
        self.tokenizer = self.progress = self.error = None
        self.is_closed = self.is_missing = False
        self._set(ModelState.LOADING if self.holders.waiting else ModelState.UNLOADED)

    def fail(self, error: HeadraceError) -> None:
        """It cannot be loaded: everybody who waits is told, and for a while, which grows, those who come."""
        self.is_away = False
        self.failures.count()
        self.refuse(error)

    def refuse(self, error: HeadraceError) -> None:
        """It is not loaded: who waits is told. Nothing was tried, so the next who asks may find it otherwise."""
        self.error = error
        self.is_missing = True
        self._set(ModelState.FAILED)

    def give_up(self) -> None:
        """It is not loaded after all, though it was expected to be."""
        self.progress = self.error = None
        self.is_missing = False
        self._set(ModelState.ASLEEP if self.is_away else ModelState.UNLOADED)

    def announce_end(self) -> None:
        """The server ends: nobody need wait any longer."""
        self._set(ModelState.STOPPED)

    async def stop(self) -> None:
        """End the engine process and its supervision for good. Idempotent."""
        self.announce_end()
        await self._end()

    def kill(self) -> None:
        """SIGKILL the engine process."""
        if self.supervision.process is not None:
            self.supervision.process.kill()

    async def _end(self) -> None:
        async with self._spawning:
            pass  # a process that is being made is there now
        await self.supervision.end()
        self.is_away = False

    def note_loading(self, progress: Loading) -> None:
        """Its process has come further in its load."""
        self.progress = progress
        self._tell()

    async def make_ready(self, info: EngineInfo, *, again: bool) -> None:
        """Its process has loaded, `again` after a death. Raises `ModelLoadError`."""
        if self.tokenizer is None or self.info is None or info.model_dir != self.info.model_dir:
            self.tokenizer, self.capabilities = await asyncio.to_thread(_prepare, self.config, info, self.terms.tools)
        if self.info is None:
            line = describe_defaults(self.terms.defaults, info.generation_defaults)
            logger.info("model %s: %s", self.name, line)
        self.info = info
        self.error = None
        self.is_missing = False
        if not again:
            self.ready_since = time.monotonic()
            self.failures.forget()
        self._set(ModelState.READY)

    def note_death(self, error: HeadraceError) -> None:
        """Its process has died, and another is started in a moment."""
        self.is_away = False
        self.error = error
        self._set(ModelState.RESTARTING)

    def note_lost(self) -> None:
        """Its process has died while it was asleep."""
        self.is_away = False
        self._set(ModelState.UNLOADED)

    def _set(self, state: ModelState) -> None:
        if self.state is ModelState.STOPPED or (self.state is ModelState.UNLOADING and state in _OF_A_PROCESS):
            return
        self.state = state
        if state is ModelState.UNLOADING:
            self._gone.clear()
        else:
            self._gone.set()
        if state is not ModelState.LOADING:
            self._settled.set()
        if state is ModelState.READY and not self.is_closed:
            self.holders.let_in()
        self._tell()

    def _tell(self) -> None:
        self.holders.notice()
        self._on_change(self)


def _prepare(
    config: EngineConfig, info: EngineInfo, tools: ToolsSetting | None
) -> "tuple[ChatTokenizer, dict[str, Any]]":
    """What the prompts of a loaded model need. Raises `ModelLoadError`."""
    # Imported here, so that the engine process is running before this process reads in its text libraries.
    from server.fleet.capabilities import capabilities
    from server.prompt.tokenizer import ChatTokenizer

    try:
        tokenizer = ChatTokenizer.load(Path(info.model_dir), tools=tools)
    except HeadraceError:
        raise
    except Exception as error:  # whatever a broken file makes the tokenizer library raise, only this model fails
        raise ModelLoadError(f"the model's tokenizer cannot be read: {error}") from error
    return tokenizer, capabilities(config, tokenizer, sees=info.images is not None)
