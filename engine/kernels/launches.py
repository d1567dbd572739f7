"""Every launch of a kernel of our own goes through `launch`, so that launches can be counted on any device."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let the operation through."""
        if func.overloadpacket.__name__ not in _VIEWS | _EMPTY:
            self.count += 1
        return func(*args, **(kwargs or {}))


_counter: list[LaunchCounter] = []


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Launch a Triton kernel."""
    if _counter:
        _counter[-1].count += 1
    kernel[grid](*arguments, **options)


@contextmanager
def counting_launches() -> Iterator[LaunchCounter]:
    """Count the launches inside."""
    with LaunchCounter() as counter:
        _counter.append(counter)
        try:
            yield counter
        finally:
            _counter.pop()
