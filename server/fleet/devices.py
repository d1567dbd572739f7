"""How much memory each device has, as this process can see it without torch."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from engine.config import parse_memory

CPU = "cpu"
CPU_SHARE = 0.9
"""Of the memory that is available at start: the rest is for this process, and for what the system keeps of files."""
GPU_SHARE = 0.97
_CGROUP = Path("/sys/fs/cgroup")
_QUERY = "--query-gpu=index,memory.total,memory.free"


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of one device."""

    total: int
    available: int


def find_devices() -> dict[str, DeviceMemory]:
    """`cpu`, and `cuda:N` for each GPU that this process may use. May take a second where a driver must wake up."""
    gpus = gpu_memories()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        chosen = [int(word) for word in visible.split(",") if word.strip().isdigit()]
        gpus = [gpus[index] for index in chosen if index < len(gpus)]
    return {CPU: cpu_memory(), **{f"cuda:{number}": memory for number, memory in enumerate(gpus)}}


def cpu_memory() -> DeviceMemory:
    """Of the machine, or of the control group that this process is in, where that has a lower limit."""
    machine = psutil.virtual_memory()
    found = DeviceMemory(machine.total, machine.available)
    limit = _number(_CGROUP / "memory.max") or _number(_CGROUP / "memory" / "memory.limit_in_bytes")
    if limit is None or limit >= machine.total:
        return found
    used = _number(_CGROUP / "memory.current") or _number(_CGROUP / "memory" / "memory.usage_in_bytes") or 0
    left = limit - used + _files_in_memory()
    return DeviceMemory(limit, max(0, min(left, machine.available)))


def gpu_memories() -> list[DeviceMemory]:
    """Of the NVIDIA GPUs, in the driver's order; none where its tool is not there or does not answer."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        answer = subprocess.run(
            [command, _QUERY, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=5, check=True
        ).stdout
        rows = sorted([int(cell) for cell in line.split(",")] for line in answer.splitlines() if line.strip())
        return [DeviceMemory(total * 2**20, free * 2**20) for _, total, free in rows]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def budgets(devices: Mapping[str, DeviceMemory], asked: str) -> dict[str, int]:
    """Bytes that all models together may take of each device: `auto`, a fraction of what it has, or a size.

    Raises `ConfigError` for anything else.
    """
    given = parse_memory(asked)
    if given is None:
        return {
            name: round(memory.available * (CPU_SHARE if name == CPU else GPU_SHARE))
            for name, memory in devices.items()
        }
    return {
        name: round(given * memory.total) if isinstance(given, float) else given for name, memory in devices.items()
    }


def _files_in_memory() -> int:
    """Bytes of files that the control group counts as used, and that go when memory is wanted."""
    try:
        lines = (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def _number(path: Path) -> int | None:
    """The number in a file of the kernel's; None where there is none, or it says `max`."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
