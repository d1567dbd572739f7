"""A layer's norms and activations with what they give in FP8, where a linear in FP8 is all that reads it.

Apart, a row is written in 16 bits and read again, and in a decoding step that is a launch more before three of a
layer's four products. The numbers are the same to the bit: they are rounded to 16 bits first, as when they are written.
"""

import torch
import triton
import triton.language as tl

from engine.kernels.launches import launch, power_of_2
from engine.kernels.reference import SMALLEST_ROW, Rounded
from engine.kernels.triton_dependent import await_previous
from engine.kernels.triton_fp8 import no_rows, put_rounded, quantize_rows
from engine.kernels.triton_layer import ACTIVATIONS, activate_mul, activated, add_rms_norm, added_norm, warps

CHECK_ROWS = 3
WIDEST = 16384
"""Numbers of an activated row that a program holds, gates beside them; of wider rows it would put some away."""


@triton.jit
def add_rms_norm_rounded_kernel(
    x, residual, weight, x_weight, numbers, scales, eps, dim,
    ADD: tl.constexpr, NORM_X: tl.constexpr, PLUS_ONE: tl.constexpr, SMALLEST: tl.constexpr, DIM_PAD: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):  # fmt: skip
    """Grid (rows). See `add_rms_norm_rounded`."""
    await_previous(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, DIM_PAD)
    normed = added_norm(x, residual, weight, x_weight, eps, dim, row, column, ADD, NORM_X, PLUS_ONE)
    put_rounded(normed.to(tl.float32), numbers, scales, row, column, dim, SMALLEST)


def add_rms_norm_rounded(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    *,
    plus_one: bool = False,
    x_weight: torch.Tensor | None = None,
) -> Rounded:
    """What `quantize_rows` makes of `add_rms_norm`'s."""
    rounded, pad = no_rows(x.shape[0], x.shape[1], x), power_of_2(x.shape[1])
    launch(
        add_rms_norm_rounded_kernel, (x.shape[0],),
        x, x if residual is None else residual, weight, weight if x_weight is None else x_weight,
        rounded.numbers, rounded.scales, eps, x.shape[1],
        ADD=residual is not None, NORM_X=x_weight is not None, PLUS_ONE=plus_one, SMALLEST=SMALLEST_ROW, DIM_PAD=pad,
        num_warps=warps(pad),
    )  # fmt: skip
    return rounded


@triton.jit
def activate_mul_rounded_kernel(
    gate_up, numbers, scales, dim,
    GELU: tl.constexpr, SMALLEST: tl.constexpr, DIM_PAD: tl.constexpr, DEPENDENT: tl.constexpr = False,
):  # fmt: skip
    """Grid (rows). See `activate_mul_rounded`."""
    await_previous(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, DIM_PAD)
    gate = tl.load(gate_up + row * 2 * dim + column, mask=column < dim, other=0.0)
    up = tl.load(gate_up + row * 2 * dim + dim + column, mask=column < dim, other=0.0)
    put_rounded(activated(gate, up, GELU).to(tl.float32), numbers, scales, row, column, dim, SMALLEST)


def activate_mul_rounded(gate_up: torch.Tensor, activation: str) -> Rounded:
    """What `quantize_rows` makes of `activate_mul`'s; in two launches where rows are wider than `WIDEST`."""
    assert activation in ACTIVATIONS
    rows, dim = gate_up.shape[0], gate_up.shape[1] // 2
    if dim > WIDEST:
        return quantize_rows(activate_mul(gate_up, activation))
    rounded, pad = no_rows(rows, dim, gate_up), power_of_2(dim)
    launch(
        activate_mul_rounded_kernel, (rows,), gate_up, rounded.numbers, rounded.scales, dim,
        GELU=activation == "gelu_tanh", SMALLEST=SMALLEST_ROW, DIM_PAD=pad, num_warps=warps(pad),
    )  # fmt: skip
    return rounded


def rounds_alike(dim: int, inner: int, activation: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a norm of `dim` and an activation of `inner` numbers give here, to the bit, what they do apart."""
    generator = torch.Generator(device).manual_seed(0)

    def some(width: int) -> torch.Tensor:
        return torch.randn(CHECK_ROWS, width, generator=generator, device=device).to(dtype)

    x, residual, weight, gate_up = some(dim), some(dim), some(dim)[0], some(2 * inner)
    added = residual.clone()
    pairs = (
        (add_rms_norm_rounded(x, residual, weight, 1e-5), quantize_rows(add_rms_norm(x, added, weight, 1e-5))),
        (activate_mul_rounded(gate_up, activation), quantize_rows(activate_mul(gate_up, activation))),
    )
    return torch.equal(residual, added) and all(
        torch.equal(ours.numbers.view(torch.uint8), apart.numbers.view(torch.uint8))
        and torch.equal(ours.scales, apart.scales)
        for ours, apart in pairs
    )
