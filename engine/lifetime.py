"""Processes that end with the one that started them, and find this code where that one found it."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

PR_SET_PDEATHSIG = 1
PARENT_VARIABLE = "HEADRACE_PARENT"
"""Process id of the one that started this one: it may have ended before this one's first line."""
_libc = ctypes.CDLL(None)


def child_environment() -> dict[str, str]:
    """This process's environment, with our packages importable from wherever this process found them.

    It tells whose child it is for (`die_with_parent`). Without traces of Rust's panics: where memory is at its end,
    writing one can wait for a lock for ever.
    """
    root = str(Path(__file__).resolve().parent.parent)
    path = os.environ.get("PYTHONPATH")
    path = f"{root}{os.pathsep}{path}" if path else root
    return {**os.environ, "PYTHONPATH": path, "RUST_BACKTRACE": "0", PARENT_VARIABLE: str(os.getpid())}


def give_memory_back() -> None:
    """Let the C library return to the system what it keeps of freed memory, in all its arenas. Takes milliseconds."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def describe_exit(code: int) -> str:
    """How a process ended, as the end of a sentence about it."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}" + (", perhaps for want of memory" if -code == signal.SIGKILL else "")


def is_stopped(pid: int) -> bool:
    """Whether a process has been stopped (SIGSTOP), by what the kernel says of it; False once it is gone.

    One that waits for a slow disk is not, and neither is one that holds the interpreter's lock for long.
    """
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


@contextmanager
def ending_unheard() -> Iterator[None]:
    """Inside, this process ends without a word once its parent reads no more of its answers."""
    try:
        yield
    except BrokenPipeError:
        os._exit(0)  # nothing is flushed, which would fail again


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends, however that ends; end now if it has ended already.

    To be called once. What this process starts does not inherit who its own parent is.
    """
    parent = int(os.environ.pop(PARENT_VARIABLE, "") or os.getppid())
    if sys.platform == "linux":
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)
