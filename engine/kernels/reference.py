"""What the kernels for CUDA compute, in plain torch: slow, obvious, and on any device."""

import torch
import torch.nn.functional as F


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, *, plus_one: bool = False
) -> torch.Tensor:
    """See `engine.kernels.triton_layer.add_rms_norm`."""
    if residual is not None:
        residual += x
        x = residual
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
) -> torch.Tensor:
    """See `engine.kernels.triton_layer.rotate_write`."""
    kv_heads, _, dim = k_cache.shape
    q, k, v = torch.split(qkv.view(qkv.shape[0], -1, dim), [heads, kv_heads, kv_heads], dim=1)
    k_cache[:, slots] = rotate(k, cos, sin).transpose(0, 1)
    v_cache[:, slots] = v.transpose(0, 1)
    return rotate(q, cos, sin)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x `[T, heads, D]`, its first R dimensions turned by the angles of cos and sin `[T, R]`."""
    turned, rest = x[..., : cos.shape[1]].float(), x[..., cos.shape[1] :]
    low, high = turned.chunk(2, dim=-1)
    half = torch.cat([-high, low], dim=-1)
    return torch.cat([(turned * cos[:, None] + half * sin[:, None]).to(x.dtype), rest], dim=-1)
