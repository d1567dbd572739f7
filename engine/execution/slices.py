"""Long computations in slices, so that steps go on between them: a tower on a CPU takes as long as hundreds of steps.

The computation runs in a thread of its own and stops where an operation of the model begins, or a piece of one, until
it is told to go on; only one of the two threads runs at any time. What it computes is the same, to the bit. A GPU is
waited for before the clock is read, since it computes behind what is launched: operations there should be large ones,
such as blocks.
"""

import threading
import time
from collections.abc import Callable, Iterable

import torch
from torch import nn

from engine.device.timing import synchronize
from engine.execution.pieces import InPieces


class _Abandoned(BaseException):
    """Ends a computation whose result nobody wants any more; no `except Exception` on its way may hold it."""


class SlicedCall:
    """One call of a function."""

    def __init__(self, function: Callable[[], torch.Tensor], device: torch.device) -> None:
        self._function, self._device = function, device
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._deadline = 0.0
        self._is_abandoned = False
        self._result: torch.Tensor | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="image", daemon=True)
        self._thread.start()

    def go_on(self, seconds: float) -> torch.Tensor | None:
        """Compute for about so long; the result, None if it takes longer. Raises what the function raises."""
        synchronize(self._device)  # what was launched before is none of it
        self._deadline = time.perf_counter() + seconds
        self._go.release()
        self._stopped.acquire()
        if self._error is not None:
            raise self._error
        return self._result

    def abandon(self) -> None:
        """Compute no more."""
        self._is_abandoned = True
        self._go.release()
        self._thread.join()

    def stop_if_due(self) -> None:
        """Called by the computation between its operations."""
        if threading.current_thread() is not self._thread:
            return
        synchronize(self._device)
        if time.perf_counter() >= self._deadline:
            self._stopped.release()
            self._wait()

    def _wait(self) -> None:
        self._go.acquire()
        if self._is_abandoned:
            raise _Abandoned

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            self._wait()
            # Each thread has a current CUDA device of its own.
            is_cuda = self._device.type == "cuda"
            with torch.cuda.device(self._device) if is_cuda else InPieces(self.stop_if_due):
                self._result = self._function()
        except _Abandoned:
            return
        except BaseException as error:
            self._error = error
        self._stopped.release()


class Slices:
    """Runs one computation at a time that calls these modules."""

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        """`modules` are those between whose calls it may stop, on this device."""
        self._device = device
        self._key: bytes | None = None
        self._call: SlicedCall | None = None
        for module in modules:
            module.register_forward_pre_hook(self._before)

    def _before(self, module: nn.Module, arguments: object) -> None:
        if self._call is not None:
            self._call.stop_if_due()

    def go_on(self, key: bytes, function: Callable[[], torch.Tensor], seconds: float) -> torch.Tensor | None:
        """Compute for about so long what has this key; what is under way with another is abandoned.

        The result, None if it takes longer. Raises what `function` raises.
        """
        if self._call is None or self._key != key:
            self.abandon()
            self._key, self._call = key, SlicedCall(function, self._device)
        try:
            found = self._call.go_on(seconds)
        except BaseException:
            self._call = self._key = None
            raise
        if found is not None:
            self._call = self._key = None
        return found

    def abandon(self) -> None:
        """Drop what is under way."""
        if self._call is not None:
            self._call.abandon()
        self._call = self._key = None
