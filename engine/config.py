"""What an engine process is told at its start: one frozen value, with every default in one place."""

import re
from dataclasses import dataclass, replace
from typing import Literal

from engine.errors import ConfigError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
AttentionName = Literal["auto", "triton", "reference", "sdpa", "cpu"]
Quantization = Literal["auto", "none", "fp8"]
KvDtype = Literal["auto", "fp8"]
Activations = Literal["int8", "int16"]
Graphs = Literal["auto", "true", "false", "lazy"]
GRAPHS: dict[Graphs, bool | Literal["lazy"] | None] = {"auto": None, "true": True, "false": False, "lazy": "lazy"}
"""What models.yaml and the command line call `EngineConfig.graphs`."""
MOST_RANKS = 64
"""Processes that share one model."""
ConstraintBackend = Literal["llguidance", "outlines_core"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Settings of one engine process. Zero or None means: choose for the device at hand."""

    name: str
    """The model's public name, for log lines."""
    source: str
    """Where the weights are: hub id, directory, `.gguf` file, `package://NAME/FILE` or `random://ARCHITECTURE`."""
    revision: str | None = None
    """Branch, tag or commit of a hub source."""
    dtype: Dtype = "auto"
    """`auto` is bfloat16, float32 on a CPU without bf16 arithmetic, float16 on a GPU if the checkpoint holds it."""
    quantization: Quantization = "auto"
    """Of the linears' weights: `auto` as the checkpoint has them, `none` in `dtype`, `fp8` with activations in FP8."""
    kv_dtype: KvDtype = "auto"
    """Of the KV cache: `auto` is the model's dtype, `fp8` half the memory of 16 bits."""
    activations: Activations = "int16"
    """What activations are rounded to before products with a GGUF file's own weights on a CPU."""
    device: str = "auto"
    tensor_parallel: int = 1
    """Ranks that share the model: so many devices from `device` on, or as many processes on a CPU."""
    step_timeout: float = 0.0
    """Of several ranks: seconds after which a step, or a rank that says nothing, counts as stuck, and all end."""
    context: int | None = None
    """Longest prompt plus answer in tokens; None takes the model's own and lowers it if memory is short."""
    memory: str = "auto"
    """KV cache budget: `auto`, a fraction of the device's memory like `0.5`, or a size like `4GiB`."""
    block_size: int = 16
    """Tokens in a KV block."""
    max_num_seqs: int = 0
    """Most sequences in one step."""
    max_batched_tokens: int = 0
    """Token budget of one step."""
    num_blocks: int = 0
    """Fixes the number of KV blocks, overriding `memory`; for tests and benchmarks."""
    attention: AttentionName = "auto"
    fusion: bool = True
    """Load-time surgery on the transformers model (design: tier 2)."""
    overlap: bool | None = None
    """Launch a step before the results of the one before are read; None: on a CUDA device."""
    graphs: bool | Literal["lazy"] | None = None
    """Steps in buckets, recorded on a CUDA device and merely padded on a CPU; None: on CUDA. `lazy` records a bucket
    when a step first needs it, not at load."""
    prefix_cache: bool = True
    constraints: ConstraintBackend = "llguidance"
    """What follows JSON schemas and regular expressions; grammars and tools need llguidance."""
    threads: int = 0
    """CPU threads of the forward pass."""
    max_queued_requests: int = 1024
    """Requests waiting for their first step beyond which admission is refused."""

    kv_limit: int = 0
    """Most bytes that a KV cache of `memory: auto` may take; 0 leaves it to what is free."""

    def with_kv_limit(self, num_bytes: int) -> "EngineConfig":
        """The same settings, with a limit on an automatic KV cache."""
        return replace(self, kv_limit=num_bytes)

    def __post_init__(self) -> None:
        """Raise ConfigError for what cannot be, before anything is loaded or a process is started."""
        parse_memory(self.memory)
        if not 1 <= self.tensor_parallel <= MOST_RANKS:
            raise ConfigError(f"tensor_parallel must be from 1 to {MOST_RANKS}, got {self.tensor_parallel}")


_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(MB|GB|TB|MiB|GiB|TiB)")
_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def size_in_bytes(text: str) -> int:
    """Bytes of a size such as `5.2GB` or `4GiB`. Raises ConfigError."""
    match = _SIZE.fullmatch(text)
    if match is None or not float(match[1]):
        raise ConfigError(f"{text!r} is not a size", hint="for example 5.2GB or 4GiB")
    return round(float(match[1]) * _UNITS[match[2]])


def parse_memory(text: str) -> float | int | None:
    """What a KV cache budget means: None for `auto`, a float below 1 for a fraction, an int for bytes.

    Raises ConfigError for anything else.
    """
    if text == "auto":
        return None
    if re.fullmatch(r"0?\.\d+", text) and float(text):
        return float(text)
    try:
        return size_in_bytes(text)
    except ConfigError:
        raise ConfigError(
            f"memory: {text!r} is neither auto, nor a fraction between 0 and 1, nor a size",
            hint="for example 0.5 or 4GiB",
        ) from None
