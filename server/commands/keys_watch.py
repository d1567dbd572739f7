"""Reading the keys file again when it has changed, or when the operator says so."""

import asyncio
import logging
from collections.abc import Callable, Collection
from pathlib import Path

from engine.errors import HeadraceError
from server.config.keys_file import KeyEntry, load_keys_file
from server.edge.auth import Keys

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0

Stamp = tuple[int, int, int] | None


class KeysWatch:
    """Keeps `keys` as the file has them. A file that cannot be read changes nothing, and the log says why."""

    def __init__(self, path: Path, keys: Keys, meant_by: Callable[[str], Collection[str]]) -> None:
        """The file was read into `keys` right before. `meant_by` has the models that an entry of a key's means."""
        self._path = path
        self._keys = keys
        self._meant_by = meant_by
        self._read_at = self._seen = self._stamp()
        self._told = asyncio.Event()

    def reload(self) -> None:
        """Read the file now, changed or not."""
        self._told.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        self._warn()
        while True:
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._told.wait()
            except TimeoutError:
                pass
            is_told = self._told.is_set()
            self._told.clear()
            await self.look(is_told=is_told)

    async def look(self, *, is_told: bool = False) -> None:
        """Read the file if it has changed and then stayed as it is for one look, so that nobody is in the middle of
        writing it.
        """
        stamp = self._stamp()
        is_settled = stamp == self._seen and stamp != self._read_at
        self._seen = stamp
        if not is_settled and not is_told:
            return
        self._read_at = stamp
        try:
            # In a thread, since a file of many keys takes its time.
            entries = await asyncio.to_thread(load_keys_file, self._path)
            self._keys.replace(entries)
        except HeadraceError as error:
            logger.error("the keys stay as they were: %s", error)
        except Exception:
            logger.exception("the keys stay as they were, since their file could not be read")
        else:
            logger.info("%s", _told_of(self._path, entries))
            self._warn()

    def _warn(self) -> None:
        """Say which keys name models that are not here: to their users a slip of the pen looks like a missing model."""
        for name, entries in self._keys.entries_without_model(self._meant_by).items():
            named = ", ".join(map(repr, entries))
            logger.warning("the key %s may use %s, which is no model of this server", name, named)

    def _stamp(self) -> Stamp:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def _told_of(path: Path, entries: tuple[KeyEntry, ...]) -> str:
    return f"{path.name} was read again: {len(entries)} key{'' if len(entries) == 1 else 's'}"
