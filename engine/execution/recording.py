"""Recorded steps: a CUDA device repeats the launches of a step by itself, which takes the host next to no time.

All recordings share one pool of memory and one place for their logits, so only the newest step's are there. On a CPU
nothing is recorded.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch

logger = logging.getLogger(__name__)


class Recorder:
    """Records steps on one device, of at most `num_rows` rows of logits."""

    def __init__(self, device: torch.device, num_rows: int) -> None:
        self._device = device
        self._num_rows = num_rows
        self._pool: Any = None
        self._logits: torch.Tensor | None = None
        """Of the newest recorded step: [num_rows, V]."""
        self.records = device.type == "cuda"
        """Whether steps can be recorded, as far as is known."""

    def record(self, name: str, step: Callable[[], torch.Tensor]) -> torch.cuda.CUDAGraph | None:
        """Record a step that gives logits `[R, V]`, once it has run with all its kernels built.

        None where that fails: for want of memory, and then others may still be recorded, or else for good.
        """
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        try:
            if self._logits is None:
                width = step()
                self._logits = width.new_empty(self._num_rows, width.shape[1])
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
        logger.info("recorded %s", name)
        return graph

    def forget(self) -> None:
        """All recordings are gone: let go of the memory they shared."""
        self._pool = self._logits = None

    def replay(self, graph: torch.cuda.CUDAGraph, rows: int) -> torch.Tensor:
        """Run a recorded step; its first `rows` logits, which the next step overwrites."""
        assert self._logits is not None
        graph.replay()
        return self._logits[:rows]
