"""Which attention a model gets: the one its configuration names, or the best there is for its device."""

import os
from collections.abc import Callable

import torch

from engine.attention.choice import Choice, Problem, apply, choose_attention
from engine.attention.context import AttentionBackend
from engine.attention.cpu import CpuAttention
from engine.attention.reference import ReferenceAttention
from engine.attention.sdpa import SdpaAttention
from engine.config import EngineConfig
from engine.device.device import check_fp8
from engine.device.ranks import Ranks
from engine.errors import ConfigError
from engine.kernels.cpu import CpuKernels
from engine.sizing.cache import LayerShape

Progress = Callable[[str, float | None], None]


def problem_of(
    shapes: dict[int, LayerShape], text_config: object, dtype: torch.dtype, kv_dtype: torch.dtype, block_size: int
) -> Problem:
    """What a model's layers ask of the attention, by the shape that most of them have."""
    kinds = list(shapes.values())
    shape = max(kinds, key=kinds.count)
    heads = int(getattr(text_config, "num_attention_heads", shape.num_kv_heads))
    softcap = getattr(text_config, "attn_logit_softcapping", None)
    sizes = shape.num_kv_heads, shape.k_dim, shape.v_dim
    return Problem(heads, *sizes, dtype, kv_dtype, block_size, softcap, shape.is_latent)


def select_attention(
    config: EngineConfig, problem: Problem, device: torch.device, progress: Progress, ranks: Ranks | None = None
) -> Choice:
    """The attention for a device. Raises ConfigError for one that cannot do what is asked.

    What is measured, rank 0 measures for all.
    """
    name = config.attention
    if config.kv_dtype == "fp8":
        check_fp8("kv_dtype", device)
        if name in ("cpu", "sdpa") or (name == "auto" and device.type == "cpu"):
            name = "cpu" if name == "auto" else name
            raise ConfigError(f"kv_dtype: fp8 is not done by attention: {name}", hint="use kv_dtype: auto")
    if name == "auto" and device.type == "cuda":
        progress("choosing the attention for this GPU", None)
        if ranks is None:
            return choose_attention(problem, device)
        choice = ranks.agreed(choose_attention(problem, device) if ranks.leads else None, Choice)
        apply(problem, choice)
        return choice
    name = "cpu" if name == "auto" else name
    if name == "cpu" and device.type != "cpu":
        raise ConfigError("attention: cpu serves the CPU only", hint="use auto")
    if name == "triton" and device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigError("attention: triton serves GPUs only", hint="use auto")
    return Choice(name)


def make_backend(
    name: str, problem: Problem, device: torch.device, kernels: CpuKernels | None, max_batched_tokens: int
) -> AttentionBackend:
    """A backend by its name, for steps of up to so many tokens; `kernels` are the CPU's."""
    if name == "cpu":
        return CpuAttention(problem.block_size, kernels)
    if name == "triton":
        from engine.attention.triton import TritonAttention  # an installation for CPUs has no triton

        backend = TritonAttention(problem.block_size, device)
        if problem.dtype == problem.kv_dtype and problem.k_dim == problem.v_dim and not problem.softcap:
            shape = (problem.heads, problem.kv_heads, problem.k_dim)
            backend.long_prompts.prepare(*shape, problem.dtype, device, max_batched_tokens)
        return backend
    if name == "sdpa":
        return SdpaAttention(problem.block_size)
    return ReferenceAttention(problem.block_size)
