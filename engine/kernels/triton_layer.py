"""A layer's small operations on CUDA. Each moves its inputs and outputs once, and that is its whole cost.

The product of gate and up `[T, 2·I]` is read once (2·I numbers a token) and I are written. The norm reads two rows of
the hidden width and writes two. Rotary embedding reads the packed queries, keys and values and writes the keys and
values where they stay, in the cache's blocks, and the queries beside.
"""

import torch
import triton
import triton.language as tl

ACTIVATIONS = ("silu", "gelu_tanh")


@triton.jit
def add_rms_norm_kernel(
    x, residual, weight, out, eps, dim, ADD: tl.constexpr, PLUS_ONE: tl.constexpr, DIM_PAD: tl.constexpr
):
    """Grid (rows). See `add_rms_norm`."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, DIM_PAD)
    real = column < dim
    hidden = tl.load(x + row * dim + column, mask=real, other=0.0).to(tl.float32)
    if ADD:
        before = tl.load(residual + row * dim + column, mask=real, other=0.0)
        # Rounded as the residual stream is, so that the norm sees what later layers see.
        hidden = (hidden + before.to(tl.float32)).to(before.dtype).to(tl.float32)
        tl.store(residual + row * dim + column, hidden.to(before.dtype), mask=real)
    scale = tl.rsqrt(tl.sum(hidden * hidden, 0) / dim + eps)
    factor = tl.load(weight + column, mask=real, other=0.0).to(tl.float32)
    if PLUS_ONE:
        factor += 1.0
    tl.store(out + row * dim + column, (hidden * scale * factor).to(out.dtype.element_ty), mask=real)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, *, plus_one: bool = False
) -> torch.Tensor:
    """The RMSNorm of x `[T, dim]`, to whose `residual` `[T, dim]` x is added first, in place.

    With `plus_one` the weight counts from 1, as Gemma's does. Contiguous; fp32, fp16 or bf16.
    """
    out = torch.empty_like(x)
    pad = triton.next_power_of_2(x.shape[1])
    add_rms_norm_kernel[(x.shape[0],)](
        x, x if residual is None else residual, weight, out, eps, x.shape[1],
        ADD=residual is not None, PLUS_ONE=plus_one, DIM_PAD=pad, num_warps=warps(pad),
    )  # fmt: skip
    return out


def warps(width: int) -> int:
    """Warps for a program over a row of so many numbers: 16 numbers a thread or fewer."""
    return max(1, min(32, width // 512))


@triton.jit
def activate_mul_kernel(gate_up, out, dim, GELU: tl.constexpr, TILE: tl.constexpr):
    """Grid (rows, tiles). See `activate_mul`."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    real = column < dim
    gate = tl.load(gate_up + row * 2 * dim + column, mask=real, other=0.0)
    up = tl.load(gate_up + row * 2 * dim + dim + column, mask=real, other=0.0)
    value = gate.to(tl.float32)
    if GELU:
        inner = 0.7978845608028654 * (value + 0.044715 * value * value * value)
        value = value * tl.sigmoid(2.0 * inner)
    else:
        value = value * tl.sigmoid(value)
    # Rounded before the product, as the two operations are when they are apart.
    product = value.to(gate.dtype).to(tl.float32) * up.to(tl.float32)
    tl.store(out + row * dim + column, product.to(gate.dtype), mask=real)


def activate_mul(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """`activation(gate) · up` of gate_up `[T, 2·dim]`, contiguous; `[T, dim]`. GELU is the one with tanh."""
    assert activation in ACTIVATIONS
    rows, width = gate_up.shape
    out = torch.empty(rows, width // 2, dtype=gate_up.dtype, device=gate_up.device)
    tile = 1024
    activate_mul_kernel[(rows, triton.cdiv(width // 2, tile))](
        gate_up, out, width // 2, GELU=activation == "gelu_tanh", TILE=tile, num_warps=4
    )
    return out


@triton.jit
def rotate_write_kernel(
    qkv, cos, sin, slots, q_out, k_cache, v_cache, k_head_stride, v_head_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, ROTARY: tl.constexpr, HALF_PAD: tl.constexpr,
    DIM_PAD: tl.constexpr,
):  # fmt: skip
    """Grid (tokens, query heads + 2 · KV heads). See `rotate_write`."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    source = qkv + token * (HEADS + 2 * KV_HEADS) * DIM + head * DIM
    slot = tl.load(slots + token)
    dim = tl.arange(0, DIM_PAD)
    if head >= HEADS + KV_HEADS:
        target = v_cache + (head - HEADS - KV_HEADS).to(tl.int64) * v_head_stride + slot * DIM
        tl.store(target + dim, tl.load(source + dim, mask=dim < DIM), mask=dim < DIM)
        return
    if head < HEADS:
        target = q_out + (token * HEADS + head) * DIM
    else:
        target = k_cache + (head - HEADS).to(tl.int64) * k_head_stride + slot * DIM
    half = tl.arange(0, HALF_PAD)
    real = half < ROTARY // 2
    low = tl.load(source + half, mask=real, other=0.0).to(tl.float32)
    high = tl.load(source + ROTARY // 2 + half, mask=real, other=0.0).to(tl.float32)
    low_cos = tl.load(cos + token * ROTARY + half, mask=real, other=0.0).to(tl.float32)
    low_sin = tl.load(sin + token * ROTARY + half, mask=real, other=0.0).to(tl.float32)
    high_cos = tl.load(cos + token * ROTARY + ROTARY // 2 + half, mask=real, other=0.0).to(tl.float32)
    high_sin = tl.load(sin + token * ROTARY + ROTARY // 2 + half, mask=real, other=0.0).to(tl.float32)
    kind = target.dtype.element_ty
    tl.store(target + half, (low * low_cos - high * low_sin).to(kind), mask=real)
    tl.store(target + ROTARY // 2 + half, (high * high_cos + low * high_sin).to(kind), mask=real)
    if ROTARY < DIM:
        rest = (dim >= ROTARY) & (dim < DIM)
        tl.store(target + dim, tl.load(source + dim, mask=rest), mask=rest)


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
    """Rotate the queries and keys of qkv `[T, (H + 2·KV)·D]`, put keys and values into their slots; `[T, H, D]`.

    cos and sin `[T, R]`, contiguous: the first R of D dimensions are rotated, the first half of them with the second
    (transformers' `rotate_half`), so every scaling of the angles, and M-RoPE, is in cos and sin. slots int64 `[T]`.
    The cache is `[KV, slots, D]`, contiguous.
    """
    kv_heads, _, dim = k_cache.shape
    q = torch.empty(qkv.shape[0], heads, dim, dtype=qkv.dtype, device=qkv.device)
    rotary = cos.shape[1]
    rotate_write_kernel[(qkv.shape[0], heads + 2 * kv_heads)](
        qkv, cos, sin, slots, q, k_cache, v_cache, k_cache.stride(0), v_cache.stride(0),
        HEADS=heads, KV_HEADS=kv_heads, DIM=dim, ROTARY=rotary, HALF_PAD=triton.next_power_of_2(rotary // 2),
        DIM_PAD=triton.next_power_of_2(dim), num_warps=1,
    )  # fmt: skip
    return q
