"""Linears in FP8 whose weights have a scale for each block of 128 by 128 numbers, as DeepSeek's and Qwen's files do.

Such weights are kept as they are, number by number, and activations get a scale for each token and 128 inputs: what
these models were trained or measured with. On CUDA a kernel of ours multiplies them; elsewhere plain torch computes the
same, slowly.
"""

import torch
import torch.nn.functional as F
from torch import nn

from engine.kernels.reference import FP8_BLOCK, quantize_blocks, rounded_groups, spread_blocks


class BlockFp8Linear(nn.Module):
    """A linear whose weight is e4m3 `[out, in]`, times scale fp32 `[⌈out/128⌉, ⌈in/128⌉]` by block."""

    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        assert scale.shape == tuple(-(-side // FP8_BLOCK) for side in weight.shape)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.rounds_rows = True

    @classmethod
    def quantized(cls, weight: torch.Tensor, bias: torch.Tensor | None) -> "BlockFp8Linear":
        """Of a weight `[out, in]` in any wider dtype."""
        return cls(*quantize_blocks(weight.detach()), bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x `[..., in]` → `[..., out]` in x's dtype."""
        rows = x.reshape(-1, self.in_features)
        if self.rounds_rows and rows.is_cuda:
            from engine.kernels import triton_fp8  # an installation for CPUs has no triton

            product = triton_fp8.block_product(rows.contiguous(), self.weight, self.scale, self.bias)
        else:
            product = self.plain_product(rows)
        return product.view(*x.shape[:-1], self.out_features)

    def plain_product(self, rows: torch.Tensor) -> torch.Tensor:
        """rows `[T, in]` → `[T, out]`: what the kernel computes, but for the order of its sums."""
        rounded = rounded_groups(rows) if self.rounds_rows else rows.float()
        return F.linear(rounded, self.unpacked(), None if self.bias is None else self.bias.float()).to(rows.dtype)

    def unpacked(self) -> torch.Tensor:
        """The weight in fp32."""
        return self.weight.float() * spread_blocks(self.scale, self.weight.shape)

    @property
    def ends_with_a_block(self) -> bool:
        """Whether another's outputs can follow its own, with blocks of theirs."""
        return self.out_features % FP8_BLOCK == 0
