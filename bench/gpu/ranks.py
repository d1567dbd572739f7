"""Models that ranks share: decoding and prompts of full shapes with random weights, and of what machine that tells."""

import math
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import torch

from bench.gpu.engines import EngineBench
from bench.gpu.forms import config_of, is_stored, text_config
from bench.gpu.limits import LeftOut
from bench.gpu.rank_costs import link_of, rank_costs, room_on
from engine.costs import Ceilings
from engine.device.device import total_memory
from engine.errors import ConfigError

SPARE = 0.9
"""Of the tokens that a KV cache is thought to hold, those that are counted on."""


def shared_bench(
    spec: str, ranks: int, device: torch.device, ceilings: Ceilings | None, *, context: int, max_num_seqs: int,
    leave: Callable[[], None],
) -> EngineBench:  # fmt: skip
    """An engine of so many ranks, or of one for comparison. Raises LeftOut, saying what is lacking.

    Where the KV cache does not hold `context` tokens the engine has a shorter one.
    """
    settings = config_of(spec, device, context=context, max_num_seqs=max_num_seqs, ranks=ranks)
    stored = is_stored(spec)
    config, link = text_config(settings), None if device.type == "cuda" else math.inf  # a CPU's ranks share memory
    try:
        if device.type == "cuda":
            link = link_of(torch.cuda.get_device_name(device))
            tokens, lacking = room_on(config, settings, total_memory(device), stored=stored)
            if lacking:
                raise LeftOut(lacking)
            context = min(context, int(SPARE * tokens))
        costs = rank_costs(config, settings, link, stored=stored)
    except ConfigError as error:
        raise LeftOut(error.message) from error
    return EngineBench(
        spec, device, ceilings, context=context, max_num_seqs=max_num_seqs, ranks=ranks, costs=costs, leave=leave
    )


def circumstances_of(ranks: int, device_name: str) -> dict[str, Any]:
    """The devices of all ranks, what they speak by, and how they are joined, for a record."""
    if torch.device(device_name).type != "cuda":
        return {"devices": [device_name] * ranks, "nccl": None, "topology": []}
    first = torch.device(device_name).index or 0
    return {
        "devices": [torch.cuda.get_device_name(first + rank) for rank in range(ranks)],
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "topology": topology(),
    }


def topology() -> list[str]:
    """The lines of `nvidia-smi topo -m`; none where it says nothing."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        said = subprocess.run([command, "topo", "-m"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.rstrip() for line in said.splitlines() if line.strip()]
