"""Which models are in memory: loads what is wanted, ends what is in the way, so that every device keeps its budget.

A model is wanted by a request (`Fleet.lease`), by an operator, or because the server starts. The wish waits in the
order of its coming until `next_moves` finds room; then the model gets a grant of bytes and its engine is started. Once
it is ready the grant becomes what it really takes, which `Needs` remembers. To make room a model is retired, its
process ended and waited for, and only then its grant is free. A model of a GPU can sleep instead: its weights then have
a place in the host's budget, and what little its process keeps of the GPU goes on being its grant there. All of this is
decided in one task that looks again at each change, and when time alone may have changed something. `Movers` carry it
out, and what models have stands in `Grants`.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path

from engine.errors import ConfigError, ModelLoadError
from server.fleet.books import Holding, Moves, Phase, next_moves
from server.fleet.devices import CPU, DeviceMemory, budgets, find_devices
from server.fleet.grants import Grants
from server.fleet.handle import EngineHandle
from server.fleet.movers import Movers
from server.fleet.needs import Need, Needs
from server.fleet.policy import FleetPolicy, ModelState
from server.fleet.pools import find_pools, pooled
from server.fleet.retries import Retries
from server.fleet.tasks import Tasks
from server.fleet.turns import Turns
from server.fleet.wishes import Wishes

logger = logging.getLogger(__name__)

WAITING = "waiting for memory"
"""The stage of a load that has no room yet."""
GIB = 2**30


class Residency:
    """The one who decides. Everything here runs in one event loop."""

    def __init__(
        self,
        handles: Mapping[str, EngineHandle],
        policy: FleetPolicy,
        *,
        budget: str = "auto",
        sizes: Mapping[str, int] | None = None,
        find: Callable[[], dict[str, DeviceMemory]] = find_devices,
    ) -> None:
        """`budget` is for all models of a device together (`devices.budgets`), `sizes` are those of models' weights."""
        self.grants = Grants()
        """What the models have."""
        self.too_large: set[str] = set()
        """Models that come on demand and are known to fit in no way; asked for, they are refused with the numbers."""
        self._handles = handles
        self._policy = policy
        self._asked = budget
        self._sizes = sizes or {}
        self._find = find
        self._needs: Needs
        self._movers: Movers
        self._turns = Turns()
        self._retries = Retries(handles.values(), policy)
        self._wake = asyncio.Event()
        self._tasks = Tasks()
        self._wishes = Wishes(policy, self.grants, self._sizes, self.look)
        self._is_over = False
        """Whether models that turned out larger than was thought exceed a budget."""
        self._closed = False

    async def start(self, directory: Path) -> None:
        """Begin to load what is wanted; returns once the engines that find room have been spawned.

        Engines have their sockets in `directory`.
        """
        found = await asyncio.to_thread(self._find)
        pools = find_pools(found, [handle.config for handle in self._handles.values()])
        devices = pooled(found, pools)
        self.grants.budgets = budgets(devices, self._asked)
        self._needs = Needs(devices, self.grants.budgets, pools=pools)
        self._movers = Movers(
            directory, self.grants, self._needs, self._tasks,
            find=lambda: pooled(self._find(), pools), look=self.look, wish=self._wishes.add,
        )  # fmt: skip
        await self._wishes.begin(self._needs, directory)
        again_at = self._move_all()
        await self._tasks.wait()
        self._tasks.begin(self._run(again_at), "residency")

    async def close(self) -> None:
        """Load nothing more; returns once the processes that are being ended have ended. Idempotent."""
        self._closed = True
        await asyncio.gather(self._wishes.close(), self._tasks.close())

    def want(self, handle: EngineHandle, *, may_end: bool = True) -> None:
        """See that a model is loaded, if it is not loaded or loading already; `may_end`: for it others may be ended."""
        if handle.name in self._wishes:
            self.look()  # perhaps all others had left
        if self._closed or handle.state not in (ModelState.UNLOADED, ModelState.ASLEEP, ModelState.FAILED):
            return
        handle.expect()
        self._wishes.add(handle, may_end=may_end)

    def end(self, handle: EngineHandle) -> None:
        """End a model that has no requests, whether it is ready, loading or waiting for its turn."""
        if self._wishes.drop(handle.name):
            handle.give_up()
        elif handle.name in self.grants and handle.name not in self._movers.ending:
            self._movers.end(handle)
        elif handle.state is ModelState.FAILED:
            handle.give_up()

    def sleep(self, handle: EngineHandle) -> None:
        """Put a ready model away that has no requests: on a GPU it sleeps, on a CPU it is ended.

        Raises `ConfigError` where the host has no room for its weights.
        """
        assert handle.state is ModelState.READY and handle.info is not None, "only a ready model can fall asleep"
        need = self.grants.of(handle.name)
        assert need is not None, "a ready model has been granted memory"
        if need.device == CPU:
            self._movers.end(handle)
            return
        weights, free = handle.info.weights_bytes, max(0, self.grants.free(CPU))
        if weights > free:
            raise ConfigError(
                f"{handle.name} has {weights / GIB:.2f} GiB of weights, and this server has {free / GIB:.2f} GiB left"
                " in the host's memory, so it cannot sleep",
                hint="unload it instead",
            )
        self._movers.put_away(handle, weights)

    def look(self) -> None:
        """Something has changed."""
        self._wake.set()

    def released(self, handle: EngineHandle) -> None:
        """A request has let a model go; that matters where memory is waited for, or the model may be idle too long."""
        if self._wishes or self._is_over or handle.holders.waiting or handle.terms.residence.idle_timeout is not None:
            self.look()

    def notice(self, handle: EngineHandle) -> None:
        """A model's state or progress has changed."""
        name = handle.name
        if handle.state is ModelState.READY and name in self.grants:
            self._movers.measure(handle)
        is_gone = handle.state is ModelState.UNLOADED and self.grants.is_asleep(name)  # it died in its sleep
        if handle.state is ModelState.FAILED or is_gone:
            self.grants.forget(name)  # its process has ended
        if handle.state is not ModelState.LOADING:
            self.look()

    async def _run(self, again_at: float) -> None:
        self._tasks.begin(self._sort_out(), "sort out")
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if again_at == inf else max(0.0, again_at - time.monotonic())):
                    await self._wake.wait()
            self._wake.clear()
            again_at = self._move_all()
            await asyncio.sleep(0)  # so that requests go on even where each decision brings about the next

    async def _sort_out(self) -> None:
        """Find those that are too large. Models of the start are tried whatever their files look like."""
        for name, handle in list(self._handles.items()):
            if not handle.terms.residence.is_at_start:
                need = await asyncio.to_thread(self._needs.find, handle.config, self._sizes.get(name))
                if need.num_bytes > self.grants.budgets[need.device]:
                    self.too_large.add(name)
        if self.too_large:
            logger.info("too large for this server, and so not listed: %s", ", ".join(sorted(self.too_large)))

    def _move_all(self) -> float:
        now = time.monotonic()
        failed, retry_at = self._retries.due(now)
        for handle in failed:
            logger.info("trying to load model %s again", handle.name)
            self.want(handle, may_end=False)
        again_at = min(retry_at, self._wishes.forget_left(now))
        again_at = min(again_at, *(self._move(device) for device in self.grants.budgets))
        self._is_over = any(self.grants.free(device) < 0 for device in self.grants.budgets)
        return again_at

    def _move(self, device: str) -> float:
        """Make the moves of one device; when to look again, by the monotonic clock."""
        now = time.monotonic()
        wishes = self._wishes.on(device)
        holdings = [self._holding(name, need) for name, need in self.grants.on(device)]
        budget = self.grants.budgets[device]
        moves = next_moves(budget, holdings, wishes, now=now, patience=self._policy.patience)
        self._apply(device, moves, {wish.name for wish in wishes})
        return moves.again_at

    def _apply(self, device: str, moves: Moves, wished: set[str]) -> None:
        for name in moves.end:
            if wished:
                self._turns.ended(name, time.monotonic())
            self._movers.end(self._handles[name])
        for name, most in moves.refuse.items():
            self._refuse(self._handles[name], device, most)
        for name in moves.drop:
            self._wishes.drop(name)
            logger.warning("there is no room for model %s beside the others; it is loaded when it is asked for", name)
            self._handles[name].give_up()
        for name in moves.load:
            self._load(self._handles[name])
        for name in self.grants:
            if (need := self.grants.of(name)) is not None and need.device == device:
                self._handles[name].close(closed=name in moves.close)
        for name in wished:
            if name in self._wishes and self._handles[name].progress is None:
                self._handles[name].expect(WAITING)

    def _holding(self, name: str, need: Need) -> Holding:
        handle, policy = self._handles[name], self._policy
        is_loading = handle.state is ModelState.LOADING or name in self._movers.measuring
        phase: Phase = "loading" if is_loading else "ready"
        timeout = handle.terms.residence.idle_timeout
        last_used = max(handle.holders.last_used or 0.0, handle.ready_since)
        stay = min(max(handle.supervision.load_seconds, policy.least_stay), policy.longest_stay)
        return Holding(
            name=name,
            num_bytes=need.num_bytes,
            phase="ending" if name in self._movers.ending else phase,
            is_pinned=handle.terms.residence.is_pinned,
            is_busy=bool(handle.holders.active) or handle.state is ModelState.RESTARTING or name in self._wishes,
            last_used=last_used,
            stays_until=handle.ready_since + stay,
            idle_at=inf if timeout is None or self.grants.is_asleep(name) else last_used + timeout,
        )

    def _load(self, handle: EngineHandle) -> None:
        need = self._wishes.take(handle.name)
        if handle.is_away:
            self.grants.give(handle.name, need)
            self._movers.wake(handle)
            return
        free = self.grants.free(need.device) - self._wishes.num_bytes(need.device)
        limit = self._needs.kv_limit(handle.config, need, free)
        granted = Need(need.device, need.rest, limit or need.kv)
        self.grants.give(handle.name, granted)
        self._turns.loaded(handle.name, time.monotonic(), granted, self.grants.budgets)
        self._movers.start(handle, limit)

    def _refuse(self, handle: EngineHandle, device: str, most: int) -> None:
        need = self._wishes.take(handle.name)
        if handle.is_away:
            self._movers.end(handle)  # and then it is refused for what it needs, if it still does not fit
            return
        beside = "" if most >= self.grants.budgets[device] else " beside the pinned models"
        handle.refuse(
            ModelLoadError(
                f"{handle.name} needs {need.num_bytes / GIB:.2f} GiB of memory on {device},"
                f" and this server has {most / GIB:.2f} GiB for it there{beside}",
                hint="give its KV cache less (`memory` in models.yaml), or all models more (--memory-budget)",
            )
        )
