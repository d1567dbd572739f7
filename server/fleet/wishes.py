"""Models that are wanted and have no memory yet: whether each can be loaded at all, and what it needs, is found first.

For one that is known never to load no room is made, nor for one that is still downloaded. A wish of requests that have
all left keeps its place for a while, should they come again, but nothing is ended for it meanwhile.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path

from engine.errors import HeadraceError, ModelLoadError
from engine.sizing.split import check_ranks
from server.fleet.books import Wish
from server.fleet.fetching import download, is_to_download
from server.fleet.grants import Grants
from server.fleet.handle import EngineHandle
from server.fleet.needs import Need, Needs
from server.fleet.policy import FleetPolicy
from server.fleet.tasks import Tasks

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Wanted:
    """A model that waits for its grant."""

    handle: EngineHandle
    since: float
    may_end: bool
    need: Need | None = None
    """None until it has been found out."""
    left_at: float | None = None
    """Since when all have left who waited for it, by the monotonic clock."""
    download: asyncio.Task[None] | None = None

    @property
    def may_end_others(self) -> bool:
        """What the server loads at its start makes no room, unless it has been asked for meanwhile."""
        return self.may_end or bool(self.handle.holders.waiting)

    @property
    def is_left(self) -> bool:
        """Whether nobody waits for it; what is loaded for no request does without, and a download is worth its end."""
        return self.may_end and self.need is not None and not self.handle.holders.waiting


class Wishes:
    """All of one server, in the order of their coming."""

    _needs: Needs
    _directory: Path

    def __init__(
        self,
        policy: FleetPolicy,
        grants: Grants,
        sizes: Mapping[str, int],
        look: Callable[[], None],
    ) -> None:
        """`sizes` are those of models' weights, as far as models.yaml knows; `look` is called where one can be met."""
        self._policy = policy
        self._grants = grants
        self._tasks = Tasks()
        self._sizes = sizes
        self._look = look
        self._wanted: dict[str, _Wanted] = {}
        self._is_begun = False

    def __contains__(self, name: str) -> bool:
        return name in self._wanted

    def __len__(self) -> int:
        return len(self._wanted)

    async def begin(self, needs: Needs, directory: Path) -> None:
        """From now on find out what is needed; returns once it is known of all that are wanted and here.

        Downloads have their sockets in `directory`.
        """
        self._needs, self._directory = needs, directory
        self._is_begun = True
        await asyncio.gather(*(self._find_out(wanted) for wanted in list(self._wanted.values())))

    async def close(self) -> None:
        """End all downloads. Idempotent."""
        await self._tasks.close()

    def add(self, handle: EngineHandle, *, may_end: bool = True) -> None:
        """A model is wanted; `may_end`: for it others may be ended, as long as somebody waits for it."""
        wanted = self._wanted[handle.name] = _Wanted(handle, time.monotonic(), may_end)
        if self._is_begun:
            self._tasks.begin(self._find_out(wanted), f"need of {handle.name}")

    def take(self, name: str) -> Need:
        """What a wish needs that `on` has named, and that is a wish no more."""
        need = self._wanted.pop(name).need
        assert need is not None, "it was found before there was a wish"
        return need

    def drop(self, name: str) -> bool:
        """Forget a wish, and end its download; whether there was one."""
        wanted = self._wanted.pop(name, None)
        if wanted is not None and wanted.download is not None:
            wanted.download.cancel()
        return wanted is not None

    def on(self, device: str) -> list[Wish]:
        """What is to be loaded on a device, in the order of its coming."""
        return [
            Wish(name=name, num_bytes=self._grants.lacks(name, need), since=wanted.since, may_end=wanted.may_end_others)
            for name, wanted in self._wanted.items()
            if (need := wanted.need) is not None and need.device == device and not wanted.is_left
        ]

    def num_bytes(self, device: str) -> int:
        """What all of a device need together."""
        needs = (wanted.need for wanted in self._wanted.values())
        return sum(need.num_bytes for need in needs if need is not None and need.device == device)

    def forget_left(self, now: float) -> float:
        """Drop what all have left for too long; when to look again, by the monotonic clock."""
        again_at = inf
        for name, wanted in list(self._wanted.items()):
            if not wanted.is_left:
                wanted.left_at = None
                continue
            if wanted.left_at is None:
                wanted.left_at = now
            until = wanted.left_at + self._policy.patience
            if now >= until:
                self.drop(name)
                wanted.handle.give_up()
            else:
                again_at = min(again_at, until)
        return again_at

    async def _find_out(self, wanted: _Wanted) -> None:
        """Find what a model needs, if it can be loaded at all; one that is not here is downloaded first."""
        handle = wanted.handle
        try:
            if not handle.is_away:
                await asyncio.to_thread(check_ranks, handle.config)
                is_elsewhere = await asyncio.to_thread(is_to_download, handle.config)
                if not self._is_wanted(wanted):
                    return
                if is_elsewhere:
                    wanted.download = self._tasks.begin(self._download(wanted), f"download of {handle.name}")
                    return
            await self._find_need(wanted)
        except HeadraceError as error:
            self._refuse(wanted, error)
        except Exception:  # nobody shall wait for ever
            logger.exception("what %s needs could not be found out", handle.name)
            self._refuse(wanted, ModelLoadError("what it needs could not be found out"))

    def _refuse(self, wanted: _Wanted, error: HeadraceError) -> None:
        if self._is_wanted(wanted):
            del self._wanted[wanted.handle.name]
            wanted.handle.refuse(ModelLoadError(error.message, hint=error.hint))

    async def _download(self, wanted: _Wanted) -> None:
        handle = wanted.handle
        try:
            await download(handle, self._directory, self._policy)
            if self._is_wanted(wanted):
                handle.expect()
                await self._find_need(wanted)
        except HeadraceError as error:
            self._fail(wanted, error)
        except Exception:
            logger.exception("the download of %s failed unexpectedly", handle.name)
            self._fail(wanted, ModelLoadError("its download failed unexpectedly"))

    def _fail(self, wanted: _Wanted, error: HeadraceError) -> None:
        if self._is_wanted(wanted):
            del self._wanted[wanted.handle.name]
            wanted.handle.fail(error)

    async def _find_need(self, wanted: _Wanted) -> None:
        handle = wanted.handle
        need = await asyncio.to_thread(self._needs.find, handle.config, self._sizes.get(handle.name))
        if handle.terms.residence.is_at_start and not need.is_measured:
            # What the operator names is tried, whatever its files suggest.
            need = need.at_most(self._needs.budgets[need.device])
        wanted.need = self._grants.awake(handle.name) or need
        self._look()

    def _is_wanted(self, wanted: _Wanted) -> bool:
        return self._wanted.get(wanted.handle.name) is wanted
