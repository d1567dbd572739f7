"""The fleet: all models of this server, loaded or not.

`EngineHandle` is the life of one model, `Residency` decides which of them are in memory, and a `Lease` is a request's
hold on one.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping

from engine.config import EngineConfig
from server.config.names import ModelNames
from server.fleet.handle import EngineHandle
from server.fleet.lease import Lease
from server.fleet.policy import FleetPolicy, ModelState, Terms
from server.fleet.private import PrivateDirectory
from server.fleet.residency import Residency


class Fleet:
    """All models of this server."""

    def __init__(
        self,
        configs: Iterable[EngineConfig],
        policy: FleetPolicy | None = None,
        *,
        aliases: Mapping[str, str] | None = None,
        terms: Mapping[str, Terms] | None = None,
        sizes: Mapping[str, int] | None = None,
        budget: str = "auto",
        on_change: Callable[[EngineHandle], None] = lambda handle: None,
    ) -> None:
        """All mappings are by model. `budget` is what all models of a device may take together."""
        policy = policy or FleetPolicy()

        def noticed(handle: EngineHandle) -> None:
            self.residency.notice(handle)
            on_change(handle)

        self.handles = {
            config.name: EngineHandle(config, policy, terms=(terms or {}).get(config.name), on_change=noticed)
            for config in configs
        }
        self.residency = Residency(self.handles, policy, budget=budget, sizes=sizes)
        self._names = ModelNames(aliases or {}, self.handles)
        self._directory: PrivateDirectory | None = None

    @property
    def at_start(self) -> list[EngineHandle]:
        """The models that are loaded with the server."""
        return [handle for handle in self.handles.values() if handle.terms.residence.is_at_start]

    @property
    def listed(self) -> list[EngineHandle]:
        """The models to be told of: all but those on demand that are too large for this machine."""
        return [handle for name, handle in self.handles.items() if name not in self.residency.too_large]

    async def start(self) -> None:
        """Begin to load the models of the start; returns once there are processes for them, or for their downloads."""
        self._directory = PrivateDirectory()
        for handle in self.at_start:
            self.residency.want(handle, may_end=False)
        await self.residency.start(self._directory.path)

    async def wait_settled(self) -> None:
        """Wait until the loads of the start have ended, one way or the other."""
        await asyncio.gather(*(handle.wait_settled() for handle in self.at_start))

    def get(self, name: str) -> EngineHandle | None:
        """The model of that name or alias."""
        handle = self.handles.get(name)
        if handle is None and (full := self._names.full(name)) is not None:
            handle = self.handles.get(full)
        return handle

    def meant_by(self, entry: str) -> frozenset[str]:
        """The full names of the models that an entry of a key's `models` means (`ModelNames.meant_by`)."""
        return self._names.meant_by(entry)

    def lease(self, handle: EngineHandle) -> Lease:
        """Take hold of a model for a request, and have it loaded if it is not. To be released, whatever happens."""
        lease = Lease(handle, lambda: self.residency.released(handle))
        if not lease.is_active:
            self.residency.want(handle)
        return lease

    async def wait_unloaded(self, handle: EngineHandle) -> None:
        """Wait until a model that is being ended has gone, with its process, or one that falls asleep is asleep."""
        while handle.state is ModelState.UNLOADING:
            await handle.wait_gone()

    async def stop(self) -> None:
        """End all engine processes. Idempotent."""
        for handle in self.handles.values():
            handle.announce_end()
        await self.residency.close()
        await asyncio.gather(*(handle.stop() for handle in self.handles.values()))
        if self._directory is not None:
            self._directory.remove()

    def kill(self) -> None:
        """SIGKILL all engine processes and leave nothing on disk; for an end that waits for nobody."""
        for handle in self.handles.values():
            handle.kill()
        if self._directory is not None:
            self._directory.remove()
