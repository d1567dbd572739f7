"""A directory of this server alone, for sockets and what its engines put beside them; gone when the server is.

A server that was killed cannot remove its own. Each holds a lock on a file in it, which ends with the process however
that ends, so the next server knows which directories nobody has any more, and removes them.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

PREFIX, LOCK = "headrace-", "lock"
MAX_SOCKET_PATH = 90
"""Unix socket paths may have 107 bytes; the rest is for the engine's own directory and the file name."""


class PrivateDirectory:
    """One that only this user can enter, with a path short enough for sockets. `remove` ends it."""

    def __init__(self) -> None:
        remove_left_behind(Path(tempfile.gettempdir()))
        path = tempfile.mkdtemp(prefix=PREFIX)
        if len(path) > MAX_SOCKET_PATH:
            shutil.rmtree(path)
            path = tempfile.mkdtemp(prefix=PREFIX, dir="/tmp")
        self.path = Path(path)
        self._lock: int | None = None
        with contextlib.suppress(OSError):  # on a full disk it goes without
            made = self.path / f"{LOCK}.new"
            self._lock = os.open(made, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            made.rename(self.path / LOCK)  # by its name it is held already

    def remove(self) -> None:
        """Remove it with all that is in it. Idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def remove_left_behind(parent: Path) -> None:
    """Remove the directories of this user's servers that have ended without doing so themselves."""
    with contextlib.suppress(OSError):
        for path in list(parent.glob(f"{PREFIX}*")):
            with contextlib.suppress(OSError):
                found = path.lstat()
                if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and _is_nobodys(path / LOCK):
                    shutil.rmtree(path, ignore_errors=True)


def _is_nobodys(lock: Path) -> bool:
    """Whether a lock is there and no process holds it. Raises OSError where there is none."""
    descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
