"""What memory a model needs: as it was measured when it was last loaded, else as its files and settings tell.

A need has two parts. The KV cache is what `memory` in models.yaml says; where that is `auto`, a model is given room for
an eighth of the budget at least, and up to `AUTO_SHARE` of what is free. The rest (weights, a step, recorded steps,
images, the process itself) is measured at each load and kept in the cache directory, so that the next server knows it
before.
"""

import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import psutil

from engine.cache import cache_dir
from engine.config import EngineConfig, parse_memory
from engine.messages import EngineInfo
from engine.sizing.fit import RANK_BYTES
from engine.sizing.formulas import shape_of
from engine.sizing.shape import Storage
from engine.weights.checkpoint import read_config
from engine.weights.sources import describe, told_config
from server.fleet.devices import CPU, DeviceMemory

logger = logging.getLogger(__name__)

PROCESS_BYTES = 512 * 2**20
"""Of an engine process beside its model: the libraries, and on a GPU what the driver keeps for a process."""
UNKNOWN_SHARE = 4
"""Of the budget, one part in so many is what the weights are thought to take of which nothing is known."""
AUTO_PARTS = 8
"""An automatic KV cache is worth at least one part in so many of the budget."""
AUTO_SHARE = {CPU: 0.4}
"""Of what is free, what an automatic KV cache may take: on a CPU as the engine itself does (`kv_cache.CPU_SHARE`)."""
FP8_SHARE = 0.5
RECORD_FILE = "needs.json"
MAX_RECORDS = 500


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes on one device."""

    device: str
    rest: int
    """All but the KV cache."""
    kv: int
    """Of the KV cache, at least."""
    is_measured: bool = False

    @property
    def num_bytes(self) -> int:
        """All of it."""
        return self.rest + self.kv

    def at_most(self, limit: int) -> "Need":
        """The same, or what is left of it within so many bytes."""
        rest = min(self.rest, limit)
        return replace(self, rest=rest, kv=min(self.kv, limit - rest))


class Needs:
    """What models need on these devices; `find` and `measure` read and write files and belong in a thread."""

    def __init__(
        self,
        devices: Mapping[str, DeviceMemory],
        budgets: Mapping[str, int],
        path: Path | None = None,
        pools: Mapping[str, str] | None = None,
    ) -> None:
        """`path` is where measurements are kept: a file in the cache directory; of `pools` these are the devices."""
        self._devices = devices
        self._pools = pools or {name: name for name in devices}
        self.budgets = budgets
        """Of each device, what all models together may have."""
        self._path = path or cache_dir() / RECORD_FILE

    def find(self, config: EngineConfig, size: int | None = None) -> Need:
        """What a model will need; `size` is of its weights, as far as models.yaml knows. Never raises."""
        here = describe(config.source, config.revision).size_bytes
        record = self._records().get(_key(config, here), {})
        device = self._device(config, record)
        if (rest := record.get("rest")) is not None:
            return Need(device, int(rest), self._kv(config, device, int(rest)), is_measured=True)
        if (found := here or size) is not None:
            weights: int | None = round(found * _growth(config))
        else:
            weights = _counted(config)
        share = self.budgets[device] // UNKNOWN_SHARE if weights is None else weights // _devices(config, device)
        rest = share + _process_bytes(config, device)
        return Need(device, rest, self._kv(config, device, rest))

    def kv_limit(self, config: EngineConfig, need: Need, free: int) -> int:
        """What an automatic KV cache may take where so many bytes are free, its need among them; 0: no limit."""
        if parse_memory(config.memory) is not None or config.num_blocks:
            return 0
        left = free - need.rest
        return max(need.kv, round(left * AUTO_SHARE[need.device]) if need.device in AUTO_SHARE else left)

    def measure(self, config: EngineConfig, info: EngineInfo, pid: int | None) -> Need:
        """What a model takes that has been loaded in that process; remembered for the next time."""
        device = self._pools.get(info.device, info.device)
        parts = _devices(config, device)
        rest = info.weights_bytes // parts + info.activation_bytes + info.graph_bytes + info.image_bytes
        rest += _process_bytes(config, device)
        if device == CPU and pid is not None:
            rest = max(rest, _resident(pid, with_ranks=info.ranks > 1))
        need = Need(device, rest, info.kv_bytes // parts, is_measured=True)
        here = describe(config.source, config.revision).size_bytes
        self._remember(_key(config, here), {"device": device, "rest": rest})
        return need

    def _kv(self, config: EngineConfig, device: str, rest: int) -> int:
        """What the KV cache takes at least, beside the rest; an automatic one makes do with what is left."""
        if config.num_blocks:
            return 0  # nothing is known of the size of a block
        given = parse_memory(config.memory)
        if given is None:
            budget = self.budgets[device]
            return max(0, min(budget // AUTO_PARTS, budget - rest))
        return round(given * self._devices[device].total) if isinstance(given, float) else given

    def _device(self, config: EngineConfig, record: Mapping[str, object]) -> str:
        """Where the model will be; what the last load found goes before what its settings suggest."""
        for name in (str(record.get("device", "")), config.device, f"{config.device}:0"):
            if name in self._pools:
                return self._pools[name]
        gpus = [name for name in self._devices if name != CPU]
        return gpus[0] if gpus else CPU

    def _records(self) -> dict[str, dict[str, int | str]]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            return {key: value for key, value in found.items() if isinstance(value, dict)}
        except (OSError, ValueError, AttributeError):
            return {}  # it is only a memory aid: what is missing or broken is measured again

    def _remember(self, key: str, record: dict[str, int | str]) -> None:
        records = self._records()
        if records.get(key) == record:
            return
        records.pop(key, None)
        records = dict([*records.items(), (key, record)][-MAX_RECORDS:])
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_name(f"{RECORD_FILE}.{os.getpid()}")
            temporary.write_text(json.dumps(records), encoding="utf-8")
            temporary.replace(self._path)
        except OSError as error:
            logger.warning("what a model needs cannot be kept in %s: %s", self._path.parent, error.strerror)


def _devices(config: EngineConfig, device: str) -> int:
    """On how many devices like this one the model lies in parts."""
    return 1 if device == CPU else config.tensor_parallel


def _process_bytes(config: EngineConfig, device: str) -> int:
    """Of an engine process on a device; on GPUs ranks take room for what they tell each other as well."""
    return PROCESS_BYTES + (RANK_BYTES if _devices(config, device) > 1 else 0)


def _resident(pid: int, *, with_ranks: bool) -> int:
    """Memory of a process, and of the ranks that it has started; 0 where it has ended by now."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return sum(one.memory_info().rss for one in (process, *(process.children() if with_ranks else ())))
    return 0


def _growth(config: EngineConfig) -> float:
    """How much larger weights are in memory than in their files, as far as that can be told without reading them."""
    if config.quantization == "fp8":
        return FP8_SHARE
    state = describe(config.source, config.revision)
    if state.directory is None:
        return 1.0
    told = read_config(state.directory) or {}  # the engine says what is wrong with it
    kept = told.get("dtype") or told.get("torch_dtype")
    if kept == "float32":
        return 1.0 if config.dtype == "float32" else 0.5
    return 2.0 if config.dtype == "float32" and kept in ("bfloat16", "float16") else 1.0


def _counted(config: EngineConfig) -> int | None:
    """Bytes of weights that lie in no file here, by the configuration that is told; None where that is not enough."""
    told = told_config(config.source, config.revision)
    shape = None if told is None else shape_of(told)
    if told is None or shape is None:
        return None
    storage: Storage = "quantized" if config.quantization == "fp8" else "plain"
    if told.get("quantization_config") and config.quantization != "none":
        storage = "stored"
    return shape.weight_bytes(4 if config.dtype == "float32" else 2, storage)


def _key(config: EngineConfig, here: int | None) -> str:
    """Names what decides on a model's memory but for its KV cache; `here` are the bytes of its files."""
    parts = (
        config.source, here, config.revision, config.dtype, config.quantization, config.kv_dtype, config.device,
        config.tensor_parallel, config.context, config.max_num_seqs, config.attention, config.fusion, config.graphs,
    )  # fmt: skip
    return sha256(repr(parts).encode()).hexdigest()[:24]
