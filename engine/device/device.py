"""Which device and dtype the engine computes on, and the one way host data gets there."""

import logging
import os
import platform

import numpy as np
import psutil
import torch

from engine.config import Dtype
from engine.errors import ConfigError
from engine.sizing.shape import FP8_CAPABILITY

logger = logging.getLogger(__name__)


def select_device(name: str, rank: int = 0) -> torch.device:
    """`auto` is the first CUDA device, else the CPU. Raises ConfigError for a device that is not there.

    A `rank` has the device that comes so many behind the one that is named; on a CPU all have the same. A CUDA device
    is this thread's current one afterwards: that is where Triton's launches, events and recordings go. Convolutions in
    fp32 are computed in fp32 there: torch would let towers, the only ones that have some, round to TF32.
    """
    device = _find_device(name)
    if rank and device.type == "cuda":
        device = _find_device(f"cuda:{(device.index or 0) + rank}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False
    return device


def _find_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: {name!r} is not a device", hint="use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigError(f"device: {name} was asked for, but this machine has {count} usable CUDA devices")
        return torch.device("cuda", device.index or 0)
    if device.type != "cpu":
        raise ConfigError(f"device: {name!r} is not supported", hint="use auto, cpu, cuda or cuda:N")
    return device


def select_dtype(asked: Dtype, checkpoint: torch.dtype, device: torch.device) -> torch.dtype:
    """Resolve `auto`: what the checkpoint holds, in bfloat16 rather than float32 where the device computes in it."""
    if asked != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[asked]
    if device.type == "cpu":
        return torch.bfloat16 if computes_in_bf16() else torch.float32
    return torch.bfloat16 if checkpoint == torch.float32 else checkpoint


def computes_in_bf16() -> bool:
    """Whether this machine's processor has instructions for products of bf16.

    oneDNN takes bf16 wherever there is AVX512, and on the many of these that have no such instructions it emulates
    them, at a third of the speed of float32 (bench/results/2026-11-27-peers-avx512.json).
    """
    taken = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if platform.machine().lower() in ("x86_64", "amd64"):
        return taken and bool(torch.cpu._is_avx512_bf16_supported())  # what has AMX has these too
    return taken


def check_fp8(setting: str, device: torch.device) -> None:
    """Raise ConfigError if `setting`, which asks for FP8, cannot be done on a GPU. A CPU is left to the caller."""
    if device.type == "cuda" and (capability := torch.cuda.get_device_capability(device)) < FP8_CAPABILITY:
        raise ConfigError(
            f"{setting}: fp8 needs a GPU of compute capability 8.9 or newer, and {device} has "
            f"{capability[0]}.{capability[1]}"
        )


def set_threads(threads: int, sharers: int = 1) -> int:
    """Bound the CPU threads of this process; 0 takes its share of the cores it may use. The number chosen."""
    chosen = threads or max(1, len(os.sched_getaffinity(0)) // sharers)
    torch.set_num_threads(chosen)
    return chosen


def available_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def total_memory(device: torch.device) -> int:
    """Bytes the device has."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return int(psutil.virtual_memory().total)


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy a host array to the device without waiting for it; on the CPU, share its memory."""
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def upload_into(target: torch.Tensor, array: np.ndarray) -> None:
    """Copy a host array over a tensor of its shape and dtype, without waiting for it."""
    tensor = torch.from_numpy(array)
    if target.device.type != "cpu":
        tensor = tensor.pin_memory()
    target.copy_(tensor, non_blocking=True)


def upload(arrays: list[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Copy flat int64 arrays to the device in one transfer, without waiting for it; on the CPU, share their memory."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    return list(torch.split(to_device(np.concatenate(arrays), device), [len(array) for array in arrays]))


class Download:
    """A copy to the host that does not hold up whoever asked for it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._copy = tensor
        if tensor.device.type == "cuda":
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copy.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def result(self) -> np.ndarray:
        """The values, once they are there."""
        if self._event is not None:
            self._event.synchronize()
        return np.asarray(self._copy.numpy())
