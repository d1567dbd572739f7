"""Activations to FP8 on CUDA, each token with a scale of its own.

A row `[K]` is read once (2·K bytes in bf16), and K bytes and a scale are written. FP8 here is e4m3 (Micikevicius et
al., "FP8 Formats for Deep Learning", 2022): 3 bits of mantissa, 448 the largest number, no infinity.
"""

import torch
import triton
import triton.language as tl

from engine.kernels.launches import launch
from engine.kernels.triton_layer import warps


@triton.jit
def quantize_rows_kernel(x, out, scales, dim, SMALLEST: tl.constexpr, DIM_PAD: tl.constexpr):
    """Grid (rows). See `quantize_rows`."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, DIM_PAD)
    real = column < dim
    value = tl.load(x + row * dim + column, mask=real, other=0.0).to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(value), 0), SMALLEST)
    # One exact quotient, then products: the same bits on every device.
    value = value * tl.div_rn(448.0, largest)
    # Not by minimum and maximum, which would make a number of a NaN.
    value = tl.where(value > 448.0, 448.0, tl.where(value < -448.0, -448.0, value))
    tl.store(out + row * dim + column, value.to(tl.float8e4nv), mask=real)
    tl.store(scales + row, tl.div_rn(largest, 448.0))


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x `[T, K]` contiguous, fp32, fp16 or bf16 → e4m3 `[T, K]` and fp32 scales `[T, 1]`, whose product x nearly is.

    The largest number of a row becomes 448. A NaN stays one.
    """
    rows, dim = x.shape
    out = torch.empty(rows, dim, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    pad = triton.next_power_of_2(dim)
    launch(quantize_rows_kernel, (rows,), x, out, scales, dim, SMALLEST=1e-12, DIM_PAD=pad, num_warps=warps(pad))
    return out, scales
