"""The memory of the paged KV cache: keys and values of each attention layer, laid out as the backend wants it."""

from dataclasses import dataclass

import numpy as np
import torch

from engine.config import EngineConfig, parse_memory
from engine.device.device import available_memory, total_memory
from engine.device.ranks import Ranks
from engine.errors import ConfigError, ModelLoadError
from engine.sizing.cache import CUDA_SHARE, LayerShape

GIB = 1024**3
CPU_SHARE = 0.4
"""Of the memory that is left beside the weights; the rest is for activations and the page cache."""
CPU_CONTEXTS = 16
"""On a CPU, more full-length contexts than this are not worth memory that others may want."""


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's blocks: keys `[num_kv_heads, num_slots, k_dim]` and values `[num_kv_heads, num_slots, v_dim]`.

    A slot is `block * block_size + offset`; block 0 is the null block that padding rows write to.
    """

    k: torch.Tensor
    v: torch.Tensor
    key_offset: torch.Tensor | None = None
    """fp32 `[num_kv_heads, k_dim]`: what is taken off each key before it is stored (`engine.models.key_offsets`)."""
    is_latent: bool = False
    """Whether `v` is a view of the first `v_dim` numbers of `k`: who has written the keys has written the values."""

    @classmethod
    def of_latents(cls, k: torch.Tensor, v_dim: int) -> "LayerCache":
        """A cache whose values are the first `v_dim` numbers of its keys."""
        return cls(k, k[..., :v_dim], is_latent=True)

    def wipe(self, slots: torch.Tensor) -> None:
        """Zero what slots hold; `slots` int64 on the device."""
        for part in self.parts:
            part.view(torch.uint8)[:, slots] = 0

    @property
    def parts(self) -> tuple[torch.Tensor, ...]:
        """The tensors that have memory of their own."""
        return (self.k,) if self.is_latent else (self.k, self.v)


def allocate(
    shapes: dict[int, LayerShape],
    *,
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    key_offsets: dict[int, torch.Tensor] | None = None,
) -> dict[int, LayerCache]:
    """Zeroed cache for `num_blocks` blocks and the null block, by layer index."""
    offsets = key_offsets or {}
    num_slots = (num_blocks + 1) * block_size

    def zeros(heads: int, dim: int) -> torch.Tensor:
        if device.type == "cpu":
            # The kernel hands out zeroed pages when they are first touched; torch.zeros would write to all of them now.
            memory = torch.from_numpy(np.zeros(heads * num_slots * dim * dtype.itemsize, dtype=np.uint8))
            return memory.view(dtype).view(heads, num_slots, dim)
        return torch.zeros(heads, num_slots, dim, dtype=dtype, device=device)

    def made(layer: int, shape: LayerShape) -> LayerCache:
        k = zeros(shape.num_kv_heads, shape.k_dim)
        if shape.is_latent:
            assert layer not in offsets, "values that are in the keys would be shifted too"
            return LayerCache.of_latents(k, shape.v_dim)
        return LayerCache(k, zeros(shape.num_kv_heads, shape.v_dim), offsets.get(layer))

    return {layer: made(layer, shape) for layer, shape in shapes.items()}


@dataclass(frozen=True, slots=True)
class CacheSize:
    """How many blocks fit, and the context that follows from it."""

    num_blocks: int
    context: int
    note: str | None = None


def size_cache(
    config: EngineConfig,
    token_bytes: int,
    model_context: int,
    device: torch.device,
    *,
    reserved: int = 0,
    ranks: Ranks | None = None,
) -> CacheSize:
    """Decide the number of KV blocks and the context. `reserved` bytes of what is free belong to others.

    Ranks all have as many blocks as the one that has room for the fewest.

    A context the operator asked for and that cannot fit is an error; the model's own is lowered with a note.
    Raises ConfigError, ModelLoadError.
    """
    context = config.context or model_context
    if config.num_blocks:
        num_blocks = config.num_blocks
    else:
        sharers = 1 if ranks is None or device.type != "cpu" else ranks.size
        budget = memory_budget(config.memory, device, reserved, sharers)
        if config.memory == "auto" and config.kv_limit:
            budget = min(budget, config.kv_limit // sharers)
        if config.memory == "auto" and device.type == "cpu":
            budget = min(budget, CPU_CONTEXTS * (context + config.block_size) * token_bytes)
        num_blocks = int(budget // (token_bytes * config.block_size))
    whose = ""
    if ranks is not None:
        every = ranks.numbers(num_blocks)
        num_blocks = min(every)
        whose = f", on rank {every.index(num_blocks)}, which has the least room" if max(every) > num_blocks else ""
    capacity = num_blocks * config.block_size
    if num_blocks < 2:
        raise ModelLoadError(
            f"{config.name}: no memory is left for the KV cache "
            f"({available_memory(device) / GIB:.1f} GiB free, one token takes {token_bytes / 1024:.0f} KiB){whose}",
            hint="choose a smaller model or give it more memory",
        )
    if context <= capacity:
        return CacheSize(num_blocks, context)
    if config.context:
        raise ConfigError(
            f"{config.name}: context {config.context} was asked for, but the KV cache holds {capacity} tokens{whose}",
            hint="lower context, or raise memory",
        )
    note = f"context lowered from {context} to {capacity} tokens: that is what the KV cache holds{whose}"
    return CacheSize(num_blocks, capacity, note)


def memory_budget(asked: str, device: torch.device, reserved: int = 0, sharers: int = 1) -> float:
    """Bytes for the KV cache: `auto`, a fraction of the device's memory, or a size such as `4GiB`.

    Of as many processes as share the device each gets its part. Raises ConfigError for more than is free.
    """
    available = max(0, available_memory(device) // sharers - reserved)
    budget = parse_memory(asked)
    if budget is None:
        return available * (CPU_SHARE if device.type == "cpu" else CUDA_SHARE)
    wanted = (budget * total_memory(device) if isinstance(budget, float) else budget) / sharers
    if wanted > available:
        raise ConfigError(
            f"memory: {wanted / GIB:.1f} GiB for the KV cache was asked for, {available / GIB:.1f} GiB are left for it"
        )
    return wanted
