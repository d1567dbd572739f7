"""How far a measurement is, on the terminal while it runs."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # rich takes its time to be imported
    from rich import progress


class Shown:
    """A bar for each stage on a terminal, a line for each elsewhere; where errors go, never in the table's way."""

    def __init__(self) -> None:
        self._progress: progress.Progress | None = None
        self._task: progress.TaskID | None = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._progress = Progress(console=Console(file=sys.stderr), transient=True)

    def stage(self, text: str, total: float | None = None) -> None:
        """Something new begins; `total` is how often `advance` will be called, where that is known."""
        if self._progress is None:
            print(text, file=sys.stderr, flush=True)
            return
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(text, total=total)

    def advance(self) -> None:
        """One of `total` is done."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task)

    def __enter__(self) -> "Shown":
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
