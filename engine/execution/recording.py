"""Recorded steps: a CUDA device repeats the launches of a step by itself, which takes the host next to no time.

All recordings share one pool of memory and one place for their logits, so only the newest step's are there. On a CPU
nothing is recorded.

Sizes are recorded at load or, with `is_lazy`, each behind the first step that needs it. Ranks compute the same steps in
the same order, and agree after each try: what was tried, and whether any more is, is the same on all, so all record
behind the same step.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch

from engine.cache import Progress
from engine.device.device import available_memory
from engine.device.ranks import Ranks

logger = logging.getLogger(__name__)


class Sized(Protocol):
    """Steps of one kind in a few sizes."""

    num_sizes: int

    @property
    def num_recorded(self) -> int:
        """Sizes that the device repeats by itself."""

    def warm_up(self) -> Iterator[None]:
        """Run and record one size after the other."""


class Recorder:
    """Records steps on one device, of at most `num_rows` rows of logits."""

    def __init__(
        self, device: torch.device, num_rows: int, ranks: Ranks | None = None, *, is_lazy: bool = False
    ) -> None:
        """What one of the `ranks` has not recorded none repeats. With `is_lazy` sizes are recorded when needed."""
        self.is_lazy = is_lazy
        self._agree: Callable[[bool], bool] = bool if ranks is None else ranks.every
        self._device = device
        self._num_rows = num_rows
        self._pool: Any = None
        self._logits: torch.Tensor | None = None
        """Of the newest recorded step: [num_rows, V]."""
        self.records = device.type == "cuda"
        """Whether steps can be recorded, as far as is known."""

    def record(self, name: str, step: Callable[[], torch.Tensor], found: torch.Tensor) -> torch.cuda.CUDAGraph | None:
        """Record a step that gives logits `[R, V]`, once it has run with all its kernels built, and `found` some.

        None where that fails: for want of memory, and then others may still be recorded, or else for good.
        """
        graph = self._record(name, step, found)
        self.records = self._agree(self.records)
        return graph if self._agree(graph is not None) else None

    def _record(self, name: str, step: Callable[[], torch.Tensor], found: torch.Tensor) -> torch.cuda.CUDAGraph | None:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        try:
            if self._logits is None:
                self._logits = found.new_empty(self._num_rows, found.shape[1])
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                logits = step()
                self._logits[: len(logits)].copy_(logits)
        except torch.OutOfMemoryError:
            torch.cuda.set_stream(stream)
            logger.warning("no memory to record %s, which run eagerly", name)
            return None
        except RuntimeError:
            torch.cuda.set_stream(stream)  # where recording breaks off, its own stays the current one
            self.records = False
            logger.warning("%s cannot be recorded; steps run eagerly", name, exc_info=True)
            return None
        logger.log(logging.INFO if self.is_lazy else logging.DEBUG, "recorded %s", name)
        return graph

    def warm_up(self, kinds: Sequence[Sized], progress: Progress) -> None:
        """Run and record all sizes of all kinds of steps, and log what that took; nothing where that is lazy."""
        if self.is_lazy:
            return
        total, done, started, free = sum(kind.num_sizes for kind in kinds), 0, time.monotonic(), self._free_bytes()
        progress("recording steps", 0.0)
        for kind in kinds:
            for _ in kind.warm_up():
                done += 1
                progress("recording steps", done / total)
        logger.info(
            "recorded %d of %d sizes of steps in %.1f s, in %d MiB of the device's memory",
            sum(kind.num_recorded for kind in kinds), total, time.monotonic() - started,
            max(0, free - self._free_bytes()) >> 20,
        )  # fmt: skip

    def _free_bytes(self) -> int:
        """What is free by the driver's books, which have the records themselves too; 0 where nothing is recorded."""
        if self._device.type != "cuda":
            return 0
        torch.cuda.empty_cache()
        return available_memory(self._device)

    def forget(self) -> None:
        """All recordings are gone: let go of the memory they shared."""
        self._pool = self._logits = None

    def replay(self, graph: torch.cuda.CUDAGraph, rows: int) -> torch.Tensor:
        """Run a recorded step; its first `rows` logits, which the next step overwrites."""
        assert self._logits is not None
        graph.replay()
        return self._logits[:rows]
