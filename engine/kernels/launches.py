"""Every launch of a kernel of our own goes through `launch`, so that launches can be counted on any device."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_VIEWS = frozenset(
    {"_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split",
     "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view"}
)  # fmt: skip
_EMPTY = frozenset({"empty", "empty_like", "empty_strided", "new_empty"})
"""These and the views above compute nothing."""


class LaunchCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations of torch that compute something, and our own launches, while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0
        self.in_kernel = False
        """Whether one of our own kernels is at work, which under Triton's interpreter uses torch itself."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let the operation through."""
        if not self.in_kernel and func.overloadpacket.__name__ not in _VIEWS | _EMPTY:
            self.count += 1
        return func(*args, **(kwargs or {}))


_counter: list[LaunchCounter] = []


_built: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}
"""By everything that a kernel may be built for: what was built, and the arguments behind those of a launch."""
MOST_BUILT = 4096


def _launch(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Launch what was built for such arguments before. To find that, Triton itself takes longer than all the rest.

    Numbers count by their values, which tells more apart than Triton does, and by their kind, since 1 equals 1.0.
    Layers of a step, and recurring steps, are alike nevertheless.
    """
    form = (
        kernel.fn,
        arguments[0].get_device(),
        *[
            (one.dtype, one.data_ptr() % 16 == 0) if isinstance(one, torch.Tensor) else (type(one), one)
            for one in arguments
        ],
        *options.items(),
    )
    found = _built.get(form)
    if found is not None:
        built, rest = found
        built[(*grid, 1, 1)](*arguments, *rest)
        return
    built = kernel[grid](*arguments, **options)
    if built is not None:  # else it was interpreted
        if len(_built) >= MOST_BUILT:
            _built.clear()
        _built[form] = built, tuple(options[name] for name in kernel.arg_names[len(arguments) :])


class Dependence:
    """How the kernels of `engine.kernels.triton_dependent` are launched in this process."""

    on = False
    """Whether dependently; `engine.execution.dependent` finds out."""


dependence = Dependence()
DEPENDENT = "DEPENDENT"
"""The last parameter of the kernels that take part."""


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Launch a Triton kernel, whose first argument is a tensor; those that it is built for are `options`."""
    if kernel.arg_names[-1] == DEPENDENT:
        options[DEPENDENT] = dependence.on
        if dependence.on:
            options["launch_pdl"] = True
    if not _counter:
        _launch(kernel, grid, arguments, options)
        return
    counter = _counter[-1]
    counter.count += 1
    counter.in_kernel = True
    _launch(kernel, grid, arguments, options)
    counter.in_kernel = False


def power_of_2(number: int) -> int:
    """The next power of two from a number on. Triton's own takes ten times as long, as a part of its language."""
    return 1 << (number - 1).bit_length()


def tiles_of(number: int, size: int) -> int:
    """Tiles of a size that hold so many; see `power_of_2`."""
    return -(-number // size)


@contextmanager
def counting_launches() -> Iterator[LaunchCounter]:
    """Count the launches inside."""
    with LaunchCounter() as counter:
        _counter.append(counter)
        try:
            yield counter
        finally:
            _counter.pop()
