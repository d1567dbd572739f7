"""A layer's small operations on CUDA. Each moves its inputs and outputs once, and that is its whole cost.

The product of gate and up `[T, 2·I]` is read once (2·I numbers a token) and I are written. The norm reads two rows of
the hidden width and writes two. Rotary embedding reads the packed queries, keys and values and writes the keys and
values where they stay, in the cache's blocks, and the queries beside.
"""

import torch
import triton
import triton.language as tl

from engine.kernels.launches import launch, power_of_2, tiles_of
from engine.kernels.reference import HeadNorms
from engine.kernels.triton_dependent import await_previous

ACTIVATIONS = ("silu", "gelu_tanh")


@triton.jit
def _normed(row, dim, eps, weight, PLUS_ONE: tl.constexpr):
    """A row in fp32, zero where it is padded, times its weight after RMSNorm."""
    scale = tl.rsqrt(tl.sum(row * row, 0) / dim + eps)
    if PLUS_ONE:
        weight += 1.0
    return row * scale * weight


@triton.jit
def added_norm(
    x, residual, weight, x_weight, eps, dim, row, column,
    ADD: tl.constexpr, NORM_X: tl.constexpr, PLUS_ONE: tl.constexpr,
):  # fmt: skip
    """The norm of a row of x after its addition, which goes to the residual stream; in the dtype of x."""
    real = column < dim
    kind = x.dtype.element_ty
    hidden = tl.load(x + row * dim + column, mask=real, other=0.0).to(tl.float32)
    if NORM_X:
        factor = tl.load(x_weight + column, mask=real, other=0.0).to(tl.float32)
        hidden = _normed(hidden, dim, eps, factor, PLUS_ONE).to(kind).to(tl.float32)
    if ADD:
        before = tl.load(residual + row * dim + column, mask=real, other=0.0)
        # Rounded as the residual stream is, so that the norm sees what later layers see.
        hidden = (hidden + before.to(tl.float32)).to(kind).to(tl.float32)
        tl.store(residual + row * dim + column, hidden.to(kind), mask=real)
    factor = tl.load(weight + column, mask=real, other=0.0).to(tl.float32)
    return _normed(hidden, dim, eps, factor, PLUS_ONE).to(kind)


@triton.jit
def add_rms_norm_kernel(
    x, residual, weight, x_weight, out, eps, dim,
    ADD: tl.constexpr, NORM_X: tl.constexpr, PLUS_ONE: tl.constexpr, DIM_PAD: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):  # fmt: skip
    """Grid (rows). See `add_rms_norm`."""
    await_previous(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, DIM_PAD)
    normed = added_norm(x, residual, weight, x_weight, eps, dim, row, column, ADD, NORM_X, PLUS_ONE)
    tl.store(out + row * dim + column, normed, mask=column < dim)


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    *,
    plus_one: bool = False,
    x_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """The RMSNorm of x `[T, dim]`, to whose `residual` `[T, dim]` x is added first, in place.

    With `x_weight` x is normed with that weight before it is added. With `plus_one` weights count from 1, as
    Gemma's do. Contiguous, of one dtype; fp32, fp16 or bf16.
    """
    out = torch.empty_like(x)
    pad = power_of_2(x.shape[1])
    launch(
        add_rms_norm_kernel, (x.shape[0],),
        x, x if residual is None else residual, weight, weight if x_weight is None else x_weight, out, eps, x.shape[1],
        ADD=residual is not None, NORM_X=x_weight is not None, PLUS_ONE=plus_one, DIM_PAD=pad, num_warps=warps(pad),
    )  # fmt: skip
    return out


def warps(width: int) -> int:
    """Warps for a program over a row of so many numbers: 16 numbers a thread or fewer."""
    return max(1, min(32, width // 512))


@triton.jit
def activated(gate, up, GELU: tl.constexpr):
    """`activation(gate) · up`, in their dtype."""
    value = gate.to(tl.float32)
    if GELU:
        inner = 0.7978845608028654 * (value + 0.044715 * value * value * value)
        value = value * tl.sigmoid(2.0 * inner)
    else:
        value = value * tl.sigmoid(value)
    # Rounded before the product, as the two operations are when they are apart.
    return (value.to(gate.dtype).to(tl.float32) * up.to(tl.float32)).to(gate.dtype)


@triton.jit
def activate_mul_kernel(gate_up, out, dim, GELU: tl.constexpr, TILE: tl.constexpr, DEPENDENT: tl.constexpr = False):
    """Grid (rows, tiles). See `activate_mul`."""
    await_previous(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    real = column < dim
    gate = tl.load(gate_up + row * 2 * dim + column, mask=real, other=0.0)
    up = tl.load(gate_up + row * 2 * dim + dim + column, mask=real, other=0.0)
    tl.store(out + row * dim + column, activated(gate, up, GELU), mask=real)


def activate_mul(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """`activation(gate) · up` of gate_up `[T, 2·dim]`, contiguous; `[T, dim]`. GELU is the one with tanh."""
    assert activation in ACTIVATIONS
    rows, width = gate_up.shape
    out = torch.empty(rows, width // 2, dtype=gate_up.dtype, device=gate_up.device)
    tile = 1024
    launch(
        activate_mul_kernel, (rows, tiles_of(width // 2, tile)),
        gate_up, out, width // 2, GELU=activation == "gelu_tanh", TILE=tile, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def saturate(x, KIND: tl.constexpr):
    """x fp32 in the dtype of a cache; in e4m3 no number is beyond 448, and a NaN stays one."""
    if KIND == tl.float8e4nv:  # noqa: SIM300
        x = tl.where(x > 448.0, 448.0, tl.where(x < -448.0, -448.0, x))
    return x.to(KIND)


@triton.jit
def _put_heads(
    value, dim, in_head, head, token, slot, q_out, k_cache, v_cache, k_head_stride, v_head_stride, key_offset,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Store some dimensions of some heads, `[heads, dims]`: queries beside, keys and values in their slot."""
    at_q = q_out + (token * HEADS + head[:, None]) * DIM + dim[None, :]
    tl.store(at_q, value.to(q_out.dtype.element_ty), mask=in_head & (head < HEADS)[:, None])
    k_head = (head - HEADS).to(tl.int64)
    at_k = k_cache + k_head[:, None] * k_head_stride + slot * DIM + dim[None, :]
    is_k = (head >= HEADS) & (head < HEADS + KV_HEADS)
    key = value
    if OFFSET:
        key -= tl.load(key_offset + k_head[:, None] * DIM + dim[None, :], mask=in_head & is_k[:, None], other=0.0)
    tl.store(at_k, saturate(key, k_cache.dtype.element_ty), mask=in_head & is_k[:, None])
    at_v = v_cache + (k_head - KV_HEADS)[:, None] * v_head_stride + slot * DIM + dim[None, :]
    tl.store(at_v, saturate(value, v_cache.dtype.element_ty), mask=in_head & (head >= HEADS + KV_HEADS)[:, None])


@triton.jit
def _head_weight(q_weight, k_weight, head, dim, real, HEADS: tl.constexpr, PLUS_ONE: tl.constexpr):
    """The norm's weight `[heads, dims]` of some dimensions of query and key heads."""
    of_q = tl.load(q_weight + dim, mask=real, other=0.0).to(tl.float32)
    of_k = tl.load(k_weight + dim, mask=real, other=0.0).to(tl.float32)
    weight = tl.where((head < HEADS)[:, None], of_q[None, :], of_k[None, :])
    if PLUS_ONE:
        weight += 1.0
    return weight


@triton.jit(do_not_specialize_on_alignment=("slots",))
def rotate_write_kernel(
    qkv, cos, sin, slots, q_weight, k_weight, eps, q_out, k_cache, v_cache, k_head_stride, v_head_stride, key_offset,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, ROTARY: tl.constexpr, HALF_PAD: tl.constexpr,
    REST_PAD: tl.constexpr, NORM: tl.constexpr, PLUS_ONE: tl.constexpr, OFFSET: tl.constexpr, TILE: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):  # fmt: skip
    """Grid (tokens, tiles of all heads). See `rotate_write`."""
    await_previous(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * TILE + tl.arange(0, TILE)
    slot = tl.load(slots + token)
    source = qkv + (token * (HEADS + 2 * KV_HEADS) + head[:, None]) * DIM
    kind = qkv.dtype.element_ty
    is_head = (head < HEADS + 2 * KV_HEADS)[:, None]
    turns = (head < HEADS + KV_HEADS)[:, None]
    half = tl.arange(0, HALF_PAD)
    real = half < ROTARY // 2
    low = tl.load(source + half[None, :], mask=is_head & real[None, :], other=0.0).to(tl.float32)
    high = tl.load(source + ROTARY // 2 + half[None, :], mask=is_head & real[None, :], other=0.0).to(tl.float32)
    rest_dim = ROTARY + tl.arange(0, REST_PAD)
    is_rest = is_head & (rest_dim < DIM)[None, :]
    if ROTARY < DIM:
        rest = tl.load(source + rest_dim[None, :], mask=is_rest, other=0.0).to(tl.float32)
    if NORM:
        squares = tl.sum(low * low, 1) + tl.sum(high * high, 1)
        if ROTARY < DIM:
            squares += tl.sum(rest * rest, 1)
        scale = tl.rsqrt(squares / DIM + eps)[:, None]
        weight = _head_weight(q_weight, k_weight, head, half, real, HEADS, PLUS_ONE)
        low = tl.where(turns, (low * scale * weight).to(kind).to(tl.float32), low)
        weight = _head_weight(q_weight, k_weight, head, ROTARY // 2 + half, real, HEADS, PLUS_ONE)
        high = tl.where(turns, (high * scale * weight).to(kind).to(tl.float32), high)
        if ROTARY < DIM:
            weight = _head_weight(q_weight, k_weight, head, rest_dim, rest_dim < DIM, HEADS, PLUS_ONE)
            rest = tl.where(turns, rest * scale * weight, rest)
    angle = token * ROTARY + half
    low_cos = tl.load(cos + angle, mask=real, other=0.0).to(tl.float32)[None, :]
    low_sin = tl.load(sin + angle, mask=real, other=0.0).to(tl.float32)[None, :]
    high_cos = tl.load(cos + angle + ROTARY // 2, mask=real, other=0.0).to(tl.float32)[None, :]
    high_sin = tl.load(sin + angle + ROTARY // 2, mask=real, other=0.0).to(tl.float32)[None, :]
    turned_low = tl.where(turns, low * low_cos - high * low_sin, low)
    turned_high = tl.where(turns, high * high_cos + low * high_sin, high)
    in_half = is_head & real[None, :]
    _put_heads(turned_low, half, in_half, head, token, slot, q_out, k_cache, v_cache, k_head_stride, v_head_stride,
               key_offset, HEADS, KV_HEADS, DIM, OFFSET)  # fmt: skip
    _put_heads(turned_high, ROTARY // 2 + half, in_half, head, token, slot, q_out, k_cache, v_cache, k_head_stride,
               v_head_stride, key_offset, HEADS, KV_HEADS, DIM, OFFSET)  # fmt: skip
    if ROTARY < DIM:
        _put_heads(rest, rest_dim, is_rest, head, token, slot, q_out, k_cache, v_cache, k_head_stride, v_head_stride,
                   key_offset, HEADS, KV_HEADS, DIM, OFFSET)  # fmt: skip


HEADS_TILE = 8
"""Heads of one token that a program turns, so that they share its angles."""


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
    """Rotate the queries and keys of qkv `[T, (H + 2·KV)·D]`, put keys and values into their slots; `[T, H, D]`.

    cos and sin `[T, R]`, contiguous: the first R of D dimensions are rotated, the first half of them with the second
    (transformers' `rotate_half`), so every scaling of the angles, and M-RoPE, is in cos and sin. slots int64 `[T]`.
    The cache is `[KV, slots, D]`, contiguous, in the dtype of qkv or in e4m3, which saturates. With `norms` the heads
    of queries and keys are normed first. `key_offset` fp32 `[KV, D]` is taken off the keys that are put.
    """
    kv_heads, _, dim = k_cache.shape
    q = torch.empty(qkv.shape[0], heads, dim, dtype=qkv.dtype, device=qkv.device)
    rotary = cos.shape[1]
    q_weight, k_weight = (cos, cos) if norms is None else (norms.q_weight, norms.k_weight)
    launch(
        rotate_write_kernel, (qkv.shape[0], tiles_of(heads + 2 * kv_heads, HEADS_TILE)),
        qkv, cos, sin, slots, q_weight, k_weight, 0.0 if norms is None else norms.eps, q, k_cache, v_cache,
        k_cache.stride(0), v_cache.stride(0), cos if key_offset is None else key_offset,
        HEADS=heads, KV_HEADS=kv_heads, DIM=dim, ROTARY=rotary, HALF_PAD=power_of_2(rotary // 2),
        REST_PAD=power_of_2(max(1, dim - rotary)), NORM=norms is not None,
        PLUS_ONE=norms is not None and norms.plus_one, OFFSET=key_offset is not None, TILE=HEADS_TILE, num_warps=4,
    )  # fmt: skip
    return q
