"""The ranks that share one model: what they send each other while they compute, and what they agree on.

Every rank must call the same operations in the same order; whoever calls one waits for the others. On CUDA they are
NCCL's, on a CPU gloo's. Nothing listens on a network: ranks meet by a file in a private directory, and talk over the
loopback interface, or what NCCL finds that is faster.
"""

import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import torch
import torch.distributed as dist

from engine.cache import Progress
from engine.errors import ConfigError

T = TypeVar("T")

MEETING = "meeting"
"""The file by which ranks find each other."""
PATIENCE = timedelta(minutes=30)
"""What one rank waits for another. Whether a rank is stuck is judged by `engine.ranks.watch`, which is quicker."""
SHARED_MEMORY = Path("/dev") / "shm"
SHARED_BYTES = 32 << 20
"""What NCCL takes of it for each rank, at most by the channels that it opens on one machine."""
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""Of what ranks say without NVLink or memory that they share, nothing leaves the machine, whatever is set elsewhere."""
UNREGISTERED = {"NCCL_GRAPH_REGISTER": "0"}
"""Ranks would have to register memory together while they record, which one of them may fail to do."""


class Collectives(Protocol):
    """What `torch.distributed` does among the ranks of the process group, and a record of it in tests."""

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Put the sum over all ranks in the place of each one's tensor."""

    def all_gather(self, whole: torch.Tensor, part: torch.Tensor) -> None:
        """Put all ranks' tensors, one behind the other, into `whole`."""

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Put rank 0's tensor in the place of each one's."""


class ProcessGroup:
    """The process group that `join` has made."""

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """See `Collectives`."""
        dist.all_reduce(tensor)

    def all_gather(self, whole: torch.Tensor, part: torch.Tensor) -> None:
        """See `Collectives`."""
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13
        gather(whole, part)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """See `Collectives`."""
        dist.broadcast(tensor, 0)


class Ranks:
    """This rank among the others."""

    def __init__(
        self,
        rank: int,
        size: int,
        device: torch.device,
        collectives: Collectives,
        meeting: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        """`rank` counts from 0; rank 0 leads. For `meeting` see `meet`."""
        self.rank, self.size, self.device = rank, size, device
        self._collectives = collectives
        self._meeting = meeting

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which decides."""
        return self.rank == 0

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' `x`, contiguous, in its place."""
        self._collectives.all_reduce(x)
        return x

    def joined(self, x: torch.Tensor) -> torch.Tensor:
        """All ranks' `x` `[T, n]` side by side: `[T, size * n]`."""
        whole = x.new_empty(self.size * x.shape[0], x.shape[1])
        self._collectives.all_gather(whole, x.contiguous())
        rows, columns = x.shape
        return whole.view(self.size, rows, columns).transpose(0, 1).reshape(rows, self.size * columns)

    def share(self, x: torch.Tensor) -> None:
        """Put rank 0's `x`, contiguous, in the place of each one's."""
        self._collectives.broadcast(x)

    def meet(self, progress: Progress) -> None:
        """Wait until all ranks have come so far, and tell where those are that have not.

        For what takes ranks different times, minutes even: loading. Collectives would only say that they wait.
        """
        self._meeting(progress)

    def sum(self, number: int) -> int:
        """The sum of all ranks' numbers."""
        return sum(self.numbers(number))

    def numbers(self, number: int) -> list[int]:
        """All ranks' numbers, in their order."""
        found = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        found[self.rank] = number
        return [int(one) for one in self.total(found).tolist()]

    def every(self, holds: bool) -> bool:
        """Whether something holds for all ranks."""
        return all(self.numbers(int(holds)))

    def agreed(self, value: T | None, kind: type[T]) -> T:
        """Rank 0's value, which alone is looked at; a `kind` of values that msgspec can write."""
        text = msgspec.msgpack.encode(value) if self.leads else b""
        length = self.numbers(len(text))[0]
        room = torch.zeros(length, dtype=torch.uint8)
        if self.leads:
            room = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        room = room.to(self.device)
        self.share(room)
        return msgspec.msgpack.decode(bytes(room.cpu().numpy()), type=kind)


def check_room(device: torch.device, size: int) -> None:
    """Raise ConfigError where so many ranks, the first of which has this device, have not got what they need."""
    if device.type != "cuda":
        return
    first, count = device.index or 0, torch.cuda.device_count()
    if first + size > count:
        raise ConfigError(
            f"tensor_parallel: {size} ranks from {device} on were asked for, and this process sees {count} GPUs",
            hint="CUDA_VISIBLE_DEVICES, or --gpus of a container, says which it sees",
        )
    room = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
    if room < SHARED_BYTES * size:
        raise ConfigError(
            f"tensor_parallel: {size} ranks need {SHARED_BYTES * size >> 20} MiB of {SHARED_MEMORY}, and "
            f"{room >> 20} MiB are free",
            hint="give a container more: --shm-size=1g, or in Kubernetes an emptyDir in memory mounted there",
        )


def join(directory: Path, rank: int, size: int, device: torch.device, meeting: Callable[[Progress], None]) -> Ranks:
    """Meet the other ranks, which call this too, by a file in a directory of this user's alone."""
    os.environ.update(LOOPBACK)
    for name, value in UNREGISTERED.items():
        os.environ.setdefault(name, value)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=(directory / MEETING).absolute().as_uri(),
        rank=rank,
        world_size=size,
        timeout=PATIENCE,
        device_id=device if device.type == "cuda" else None,
    )
    ranks = Ranks(rank, size, device, ProcessGroup(), meeting)
    # One of each kind: what they take of the device's memory is taken before anybody asks how much there is.
    one = torch.ones(1, 1, dtype=torch.bfloat16, device=device)
    ranks.share(one)
    assert ranks.joined(ranks.total(one)).sum() == size * size == size * ranks.sum(1), "the ranks do not add up"
    return ranks


def leave() -> None:
    """Let go of the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
