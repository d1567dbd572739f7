"""Ways to compute attention on a GPU, tried on batches of one layer: torch's own, and our kernel in its launch shapes.

All kernels are built before any is timed, one after the other, since a process has one launch shape at a time. Building
and timing have a budget each. A candidate that cannot run is passed over. Triton keeps what it has built, so after a
trial that ended early the next one comes further.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Protocol, TypeVar

import torch

from engine.attention.context import AttentionBackend
from engine.attention.sdpa import SdpaAttention
from engine.device.forward_batch import ForwardBatch
from engine.device.kv_cache import LayerCache
from engine.device.timing import best_device_seconds, recorded
from engine.kernels.launch_shapes import LaunchKey, LaunchShape, candidates, default_shape, use_shape

logger = logging.getLogger(__name__)
T = TypeVar("T")

MEASURING_SECONDS, BUILDING_SECONDS = 10.0, 60.0
"""After the first no further candidates are timed, after the second none is built: for decoding and for prompts each.
Fast GPUs need a second of the first; builds take one to three seconds each, on a busy machine more."""
REPEATS, ROUNDS = 10, 5


class Timer(Protocol):
    """Seconds that some work takes whose kernels are built; what the work raises comes out."""

    def __call__(self, name: str, work: Callable[[], object], *, capturable: bool) -> float: ...


@dataclass(frozen=True, slots=True)
class Batch:
    """A step of one layer: its inputs, and the blocks they belong to."""

    forward: ForwardBatch
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    cache: LayerCache
    scaling: float
    softcap: float | None

    def run(self, backend: AttentionBackend) -> torch.Tensor:
        """What the backend makes of it, once it has planned the step."""
        return backend.run(self.q, self.k, self.v, self.cache, scaling=self.scaling, softcap=self.softcap, window=None)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to compute attention. Without a shape it is torch's own."""

    name: str
    backend: AttentionBackend
    shape: LaunchShape | None = None


class Trial:
    """Times candidates one by one. What runs has its time in `seconds`."""

    def __init__(self, block_size: int, device: torch.device, timer: Timer) -> None:
        self.seconds: dict[str, float] = {}
        self.last_error = "none was tried"
        self.is_complete = True
        """Whether there was time and memory for every candidate."""
        self._block_size, self._device, self._timer = block_size, device, timer

    def best_shape(self, what: str, key: LaunchKey, batch: Batch) -> LaunchShape | None:
        """The launch shape that takes least, None where none runs; its time stands under `triton WHAT` too.

        Torch's own attention is timed beside the shapes, as `sdpa WHAT`.
        """

        def build(candidate: Candidate, work: Callable[[], object]) -> bool:
            build_kernels(candidate.name, work, self._device)
            return True

        def measure(candidate: Candidate, work: Callable[[], object]) -> float:
            return self._timer(candidate.name, work, capturable=candidate.backend.capturable)

        try:
            built = self._try_each(self._candidates(what, key), key, batch, build, BUILDING_SECONDS)
            timed = self._try_each(list(built), key, batch, measure, MEASURING_SECONDS)
        finally:
            use_shape(key, None)
        self.seconds |= {candidate.name: seconds for candidate, seconds in timed.items()}
        of_shapes = {candidate.shape: seconds for candidate, seconds in timed.items() if candidate.shape is not None}
        if not of_shapes:
            return None
        best = min(of_shapes, key=of_shapes.__getitem__)
        self.seconds[f"triton {what}"] = of_shapes[best]
        return best

    def _candidates(self, what: str, key: LaunchKey) -> list[Candidate]:
        found = [Candidate(f"sdpa {what}", SdpaAttention(self._block_size))]
        try:
            from engine.attention.triton import TritonAttention
        except ImportError as error:
            self.last_error = str(error)
            return found
        backend = TritonAttention(self._block_size, self._device)
        return found + [Candidate(f"triton {what} {shape}", backend, shape) for shape in candidates(key)]

    def _try_each(
        self,
        tried: list[Candidate],
        key: LaunchKey,
        batch: Batch,
        act: Callable[[Candidate, Callable[[], object]], T],
        budget: float,
    ) -> dict[Candidate, T]:
        """What `act` says of each candidate that runs. After `budget` seconds only torch's and the default shape are
        left to try."""
        said: dict[Candidate, T] = {}
        end = monotonic() + budget
        for candidate in tried:
            if monotonic() > end and candidate.shape not in (None, default_shape(key)):
                self.is_complete = False
                continue
            try:
                use_shape(key, candidate.shape)
                candidate.backend.plan(batch.forward)
                said[candidate] = act(candidate, partial(batch.run, candidate.backend))
            except Exception as error:  # a shape may need more than the GPU has, or the compiler may refuse it
                # Another start may have more memory, but not a better GPU.
                self.is_complete &= not isinstance(error, torch.OutOfMemoryError)
                self.last_error = f"{type(error).__name__}: {error}"
                logger.debug("%s does not run", candidate.name, exc_info=True)
        return said


def build_kernels(name: str, work: Callable[[], object], device: torch.device) -> None:
    """Do the work of the candidate `name` once, which builds its kernels, and raises where they do not fit."""
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_timer(device: torch.device) -> Timer:
    """Times by the GPU's own clock; what can be recorded is recorded, so that the host's work does not count."""

    def timer(name: str, work: Callable[[], object], *, capturable: bool) -> float:
        if not capturable:
            return best_device_seconds(work, ROUNDS)
        graph = recorded(lambda: [work() for _ in range(REPEATS)])
        return best_device_seconds(graph.replay, ROUNDS) / REPEATS

    return timer
