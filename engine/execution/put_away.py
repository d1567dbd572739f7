"""What a model that sleeps has on its device, put away: its weights in the host's memory, its KV cache nowhere.

Whoever holds a tensor goes on holding it. What leaves the device is the memory behind it, its storage, so views, tied
weights and merged ones need no care; but after waking the memory is another, and recorded steps, which know addresses,
have to be recorded again.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import nn


def tensors_of(model: nn.Module) -> Iterator[torch.Tensor]:
    """All that a model's modules hold, as parameters, buffers or plain attributes; some of it several times."""
    for module in model.modules():
        yield from module.parameters(recurse=False)
        yield from module.buffers(recurse=False)
        for value in vars(module).values():
            if isinstance(value, torch.Tensor):
                yield value


class PutAway:
    """The memory behind tensors of one device, taken from it until `bring_back`."""

    def __init__(self, kept: Iterable[torch.Tensor], dropped: Iterable[torch.Tensor], device: torch.device) -> None:
        """The content of `kept` is copied to the host; that of `dropped` is lost, and zeros come back.

        Raises `MemoryError` or `RuntimeError` where the host lacks memory; then all is as it was.
        """
        of_kept, of_dropped = _storages(kept, device), _storages(dropped, device)
        self._kept = [(storage, _on_host(storage)) for storage in of_kept]
        self._dropped = [(storage, storage.nbytes()) for storage in of_dropped]
        for storage in (*of_kept, *of_dropped):
            storage.resize_(0)

    @property
    def host_bytes(self) -> int:
        """What the weights take in the host's memory."""
        return sum(copy.nbytes() for _, copy in self._kept)

    @property
    def device_bytes(self) -> int:
        """What has left the device."""
        return self.host_bytes + sum(size for _, size in self._dropped)

    def bring_back(self) -> None:
        """Undo it. Raises `torch.OutOfMemoryError` where the device has no room any more."""
        for storage, size in (*((storage, copy.nbytes()) for storage, copy in self._kept), *self._dropped):
            storage.resize_(size)
        for storage, copy in self._kept:
            storage.copy_(copy)
        for storage, _ in self._dropped:
            torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage).zero_()


def _on_host(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """A copy in the host's memory."""
    copy = torch.empty(storage.nbytes(), dtype=torch.uint8).untyped_storage()
    copy.copy_(storage)
    return copy


def _storages(tensors: Iterable[torch.Tensor], device: torch.device) -> list[torch.UntypedStorage]:
    """Those on the device, each once, that can be made smaller: what maps a file or NumPy's memory cannot."""
    found: dict[int, torch.UntypedStorage] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if tensor.device == device and storage.nbytes() and storage.resizable():
            found.setdefault(storage.data_ptr(), storage)
    return list(found.values())
