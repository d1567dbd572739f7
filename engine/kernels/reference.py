"""What the kernels for CUDA compute, in plain torch: slow, obvious, and on any device."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from engine.noise import gumbel

E4M3_MAX = 448.0
"""The largest number of FP8 e4m3."""
SMALLEST_ROW = 1e-12
"""What the largest number of a row of zeros is taken for."""
FEW_ROWS = 16
"""Rows of a product that is mostly reading its weight. A matrix unit takes so many at once anyway."""
FP8_BLOCK = 128
"""Inputs of a token that share a scale in the FP8 of experts, and sides of the blocks of weights that do."""
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
"""What activations are called here, by their names in a config.json."""


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMSNorms of single heads before they are turned. Weights `[D]`, counted from 1 with `plus_one`."""

    q_weight: torch.Tensor
    k_weight: torch.Tensor
    eps: float
    plus_one: bool


@dataclass(frozen=True, slots=True)
class Rounded:
    """Rows in FP8: the product of numbers and scales is what they nearly are. The largest number of a row is 448."""

    numbers: torch.Tensor
    """e4m3 `[T, K]`"""
    scales: torch.Tensor
    """fp32 `[T, 1]`"""
    dtype: torch.dtype
    """What they had before, and what products with them come in."""


@dataclass(frozen=True, slots=True)
class RouterRule:
    """How a mixture's router makes choices of its logits."""

    choices: int
    """Experts of a token."""
    sigmoid: bool
    """Whether scores are by sigmoid, each for itself; else by softmax."""
    normalises: bool
    """Whether the weights of a token are divided by their sum, and `epsilon`."""
    epsilon: float = 0.0
    scaling: float = 1.0
    """Of the weights."""
    groups: int = 1
    """Groups of equally many experts, one after another."""
    top_groups: int = 1
    """Groups that a token's experts are of."""


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    *,
    plus_one: bool = False,
    x_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `engine.kernels.triton_layer.add_rms_norm`."""
    if x_weight is not None:
        x = rms_norm(x, x_weight, eps, plus_one)
    if residual is not None:
        residual += x
        x = residual
    return rms_norm(x, weight, eps, plus_one)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, plus_one: bool) -> torch.Tensor:
    """x `[..., dim]` divided by its root mean square over the last dimension, times the weight `[dim]`."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (normed * (weight.float() + plus_one)).to(x.dtype)


def activate_mul(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """See `engine.kernels.triton_layer.activate_mul`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up


def rotate_write(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    heads: int,
    norms: HeadNorms | None = None,
    key_offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `engine.kernels.triton_layer.rotate_write`."""
    kv_heads, _, dim = k_cache.shape
    q, k, v = torch.split(qkv.view(qkv.shape[0], -1, dim), [heads, kv_heads, kv_heads], dim=1)
    if norms is not None:
        q = rms_norm(q, norms.q_weight, norms.eps, norms.plus_one)
        k = rms_norm(k, norms.k_weight, norms.eps, norms.plus_one)
    k = less_offset(rotate(k, cos, sin).transpose(0, 1), key_offset)
    k_cache[:, slots] = saturate(k, k_cache.dtype)
    v_cache[:, slots] = saturate(v, v_cache.dtype).transpose(0, 1)
    return rotate(q, cos, sin)


def less_offset(k: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
    """Keys `[KV, T, D]` less an offset fp32 `[KV, D]`, in their own dtype."""
    return k if offset is None else (k.float() - offset[:, None]).to(k.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x `[T, heads, D]`, its first R dimensions turned by the angles of cos and sin `[T, R]`."""
    turned, rest = x[..., : cos.shape[1]].float(), x[..., cos.shape[1] :]
    low, high = turned.chunk(2, dim=-1)
    half = torch.cat([-high, low], dim=-1)
    return torch.cat([(turned * cos[:, None] + half * sin[:, None]).to(x.dtype), rest], dim=-1)


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `engine.kernels.triton_fp8.quantize_rows`."""
    wide = x.float()
    largest = wide.abs().amax(-1, keepdim=True).clamp(min=SMALLEST_ROW)
    # A number over a tensor would be a product with a rounded reciprocal.
    return saturate(wide * (wide.new_tensor(E4M3_MAX) / largest), torch.float8_e4m3fn), largest / E4M3_MAX


def quantize_groups(x: torch.Tensor, activation: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """See `engine.kernels.triton_fp8.quantize_groups`."""
    if activation is not None:
        x = activate_mul(x, activation)
    groups = -(-x.shape[1] // FP8_BLOCK)
    padded = F.pad(x, (0, groups * FP8_BLOCK - x.shape[1])).view(-1, FP8_BLOCK)
    numbers, scales = quantize_rows(padded)
    return numbers.view(len(x), -1)[:, : x.shape[1]].contiguous(), scales.view(len(x), groups)


def rounded_groups(x: torch.Tensor) -> torch.Tensor:
    """x `[T, K]` as `quantize_groups` rounds it, in fp32."""
    numbers, scales = quantize_groups(x)
    return numbers.float() * scales.repeat_interleave(FP8_BLOCK, 1)[:, : x.shape[1]]


def quantize_blocks(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight `[out, in]` → e4m3 of the shape, and fp32 scales `[⌈out/128⌉, ⌈in/128⌉]`, of 128 by 128 numbers each."""
    rows, columns = (-(-side // FP8_BLOCK) for side in weight.shape)
    padded = F.pad(weight, (0, columns * FP8_BLOCK - weight.shape[1], 0, rows * FP8_BLOCK - weight.shape[0]))
    blocks = padded.view(rows, FP8_BLOCK, columns, FP8_BLOCK).transpose(1, 2).reshape(rows * columns, -1)
    numbers, scales = quantize_rows(blocks)
    numbers = numbers.view(rows, columns, FP8_BLOCK, FP8_BLOCK).transpose(1, 2).reshape(padded.shape)
    return numbers[: weight.shape[0], : weight.shape[1]].contiguous(), scales.view(rows, columns)


def spread_blocks(scale: torch.Tensor, shape: tuple[int, int] | torch.Size) -> torch.Tensor:
    """Scales `[⌈out/128⌉, ⌈in/128⌉]` to the shape `[out, in]` of their weight."""
    return scale.repeat_interleave(FP8_BLOCK, 0)[: shape[0]].repeat_interleave(FP8_BLOCK, 1)[:, : shape[1]]


def choose_experts(
    logits: torch.Tensor, bias: torch.Tensor | None, rule: RouterRule
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `engine.kernels.triton_router.choose_experts`."""
    wide = logits.float()
    scores = wide.sigmoid() if rule.sigmoid else wide.softmax(-1)
    ranked = scores if bias is None else scores + bias.float()
    if rule.top_groups < rule.groups:
        groups = ranked.view(len(ranked), rule.groups, -1)
        best = groups.topk(2).values.sum(-1).topk(rule.top_groups).indices
        kept = torch.zeros(groups.shape[:2], dtype=torch.bool).scatter(1, best, True)
        ranked = groups.masked_fill(~kept[..., None], -torch.inf).flatten(1)
    index = ranked.topk(rule.choices).indices
    weights = scores.gather(1, index)
    if rule.normalises:
        weights = weights / (weights.sum(-1, keepdim=True) + rule.epsilon)
    return index, weights * rule.scaling


def saturate(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x in the dtype of a cache: unchanged in its own, in e4m3 the nearest number of at most 448. A NaN stays one."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(dtype) if dtype == torch.float8_e4m3fn else x.to(dtype)


def adjust(
    logits: torch.Tensor,
    slots: torch.Tensor,
    *,
    penalties: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    counts: torch.Tensor | None = None,
    in_prompt: torch.Tensor | None = None,
    mask_rows: torch.Tensor | None = None,
    words: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `engine.kernels.triton_sampler.adjust`."""
    x = logits.float()
    if penalties is not None and counts is not None and in_prompt is not None:
        repetition, frequency, presence = (part[:, None] for part in penalties)
        generated = counts[slots] > 0
        divisor = torch.where(generated | in_prompt[slots], repetition, 1.0)
        x = torch.where(x > 0, x / divisor, x * divisor) - frequency * counts[slots] - presence * generated
    if mask_rows is not None and words is not None:
        allowed = (words[:, :, None] >> torch.arange(32, dtype=torch.int32)) & 1
        allowed = allowed.flatten(1)[:, : x.shape[1]].bool()[mask_rows.clamp(min=0)]
        x = torch.where(allowed | (mask_rows < 0)[:, None], x, -torch.inf)
    return x


def thresholds(
    x: torch.Tensor, temperatures: torch.Tensor, top_ks: torch.Tensor, top_ps: torch.Tensor, min_ps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `engine.kernels.triton_filter.thresholds`."""
    bests = x.max(dim=1).values
    bounds = torch.full_like(bests, -torch.inf)
    for row in range(len(x)):
        temperature, top_k = float(temperatures[row]), int(top_ks[row])
        if temperature == 0:
            continue
        ordered = x[row].sort(descending=True).values
        if 0 < top_k < len(ordered):
            ordered = ordered[ordered >= ordered[top_k - 1]]
        if top_ps[row] < 1:
            mass = ((ordered - bests[row]).double() / temperature).exp().cumsum(0)
            ordered = ordered[ordered >= ordered[int((mass < top_ps[row] * mass[-1]).sum())]]
        least = bests[row] + temperature * min_ps[row].log()
        bounds[row] = torch.maximum(ordered[-1], least)
    return bests, bounds


def race(
    x: torch.Tensor,
    slots: torch.Tensor,
    last_tokens: torch.Tensor,
    *,
    hot: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `engine.kernels.triton_sampler.race`."""
    scores = x.float()
    finite = ~(scores.isnan() | (scores == torch.inf)).any(dim=1)
    if hot is not None:
        temperatures, keys, bests, bounds = hot
        noise = torch.from_numpy(gumbel(keys.numpy().view(np.uint64), x.shape[1]))
        noisy = (scores - bests[:, None]) / temperatures.clamp(min=1e-30)[:, None] + noise
        raced = torch.where(scores >= bounds[:, None], noisy, -torch.inf)
        scores = torch.where(temperatures[:, None] > 0, raced, scores)
    highest, token_ids = scores.max(dim=1)
    last_tokens[slots] = token_ids
    return token_ids, torch.stack([token_ids, finite & (highest > -torch.inf)], dim=1).to(torch.int32)
