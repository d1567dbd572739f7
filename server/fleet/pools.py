"""GPUs that one model's ranks share, taken as one place where memory is.

A model of several ranks takes as much of each of its GPUs, and must find it on all of them at once. So GPUs that ranks
of some model share are one device to the fleet, called after the first, with the memory of the fullest; a model that
has only one of them is counted as if it had as much of each. What is on other GPUs is not concerned.
"""

from collections.abc import Iterable, Mapping

from engine.config import EngineConfig
from server.fleet.devices import CPU, DeviceMemory


def find_pools(devices: Iterable[str], configs: Iterable[EngineConfig]) -> dict[str, str]:
    """For each device the name of the one it is counted as: its own, where no ranks share it with others."""
    gpus = [name for name in devices if name != CPU]
    pool = {name: name for name in devices}
    for config in configs:
        shared = _shared(config, gpus)
        first = min((pool[name] for name in shared), key=gpus.index, default="")
        joined = {pool[name] for name in shared}
        pool = {name: first if of in joined else of for name, of in pool.items()}
    return pool


def pooled(devices: Mapping[str, DeviceMemory], pools: Mapping[str, str]) -> dict[str, DeviceMemory]:
    """The memory of each pool: of its GPUs, the smallest numbers. Devices of no pool are left out."""
    found: dict[str, DeviceMemory] = {}
    for name, memory in devices.items():
        if (pool := pools.get(name)) is None:
            continue
        other = found.get(pool, memory)
        found[pool] = DeviceMemory(min(memory.total, other.total), min(memory.available, other.available))
    return found


def _shared(config: EngineConfig, gpus: list[str]) -> list[str]:
    """The GPUs that a model's ranks share; none for a model of one rank, or on a CPU."""
    if config.tensor_parallel == 1 or config.device == CPU:
        return []
    number = config.device.rpartition(":")[2]
    first = int(number) if number.isdigit() else 0
    return gpus[first : first + config.tensor_parallel]
