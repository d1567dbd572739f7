"""Linears in FP8: weights in e4m3 with a scale for each output, activations with a scale for each token.

Both are found from the numbers themselves, the second anew in every step. On CUDA the product is `torch._scaled_mm`'s;
elsewhere plain torch computes the same, slowly. docs/models.md says what it costs in accuracy.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from engine.errors import ModelLoadError
from engine.kernels.reference import quantize_rows
from engine.models.fp8_offsets import InputMeans, offset
from engine.sizing.shape import FP8_MULTIPLE

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
EXPANSION = "kv_b_proj"
"""What makes keys and values of latents: no linear any more where attention is on the latents themselves."""
CHECK_ROWS = 32
CHECK_TOLERANCE = 0.02
"""Of the spread of the outputs, on average: bf16 rounds by 0.2 %, and sums may be kept short."""


class Fp8Linear(nn.Module):
    """A linear whose weight is e4m3 `[out, in]` times scale fp32 `[out]`."""

    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self._adds_bias = True
        """Whether the product itself adds a bias, as far as is known."""
        self.rounds_rows = True

    @classmethod
    def quantized(cls, weight: torch.Tensor, bias: torch.Tensor | None) -> "Fp8Linear":
        """Of a weight `[out, in]` in any wider dtype."""
        numbers, scale = quantize_rows(weight.detach())
        return cls(numbers, scale[:, 0], bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x `[..., in]` → `[..., out]` in x's dtype."""
        rows = x.reshape(-1, self.in_features)
        if not self.rounds_rows:
            weight = self.weight.to(rows.dtype) * self.scale[:, None].to(rows.dtype)
            return nn.functional.linear(x, weight, None if self.bias is None else self.bias.to(rows.dtype))
        product = self._product_on_cuda(rows) if rows.is_cuda else self.plain_product(rows)
        return product.view(*x.shape[:-1], self.out_features)

    def plain_product(self, rows: torch.Tensor) -> torch.Tensor:
        """rows `[T, in]` → `[T, out]`: what the product on CUDA must be, but for its own rounding."""
        numbers, scales = quantize_rows(rows)
        product = numbers.float() @ self.weight.float().t() * scales * self.scale
        return (product if self.bias is None else product + self.bias.float()).to(rows.dtype)

    def _product_on_cuda(self, rows: torch.Tensor) -> torch.Tensor:
        from engine.kernels import triton_fp8  # an installation for CPUs has no triton

        numbers, scales = triton_fp8.quantize_rows(rows.contiguous())
        # Scales by row and column come out in bf16 only, to which a bias in bf16, and no other, is added before it is
        # written. The second factor must lie column by column, as a weight does.
        is_bf16 = self.bias is not None and rows.dtype == self.bias.dtype == torch.bfloat16
        if is_bf16 and self._adds_bias:
            try:
                return self._scaled(numbers, scales, self.bias)
            except RuntimeError as error:  # cuBLAS knows no product of some shapes that adds a bias
                if "NOT_SUPPORTED" not in str(error):
                    raise
                self._adds_bias = False
        product = self._scaled(numbers, scales, None)
        return (product if self.bias is None else product + self.bias).to(rows.dtype)

    def _scaled(self, numbers: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch._scaled_mm(
            numbers,
            self.weight.t(),
            scale_a=scales,
            scale_b=self.scale[None],
            bias=bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )


@contextmanager
def whole_rows(model: nn.Module) -> Iterator[None]:
    """Inside, activations are not rounded to FP8, so that a model changed in other ways can be held against itself.

    Rounding makes much of little: where a number falls on the other side of a step of e4m3, it moves by a sixteenth.
    """
    linears = [module for module in model.modules() if isinstance(module, Fp8Linear)]
    for linear in linears:
        linear.rounds_rows = False
    try:
        yield
    finally:
        for linear in linears:
            linear.rounds_rows = True


@torch.inference_mode()
def quantize_linears(decoder: nn.Module, means: InputMeans) -> int:
    """Put an `Fp8Linear` in the place of each linear of a decoder, for good; the number changed.

    Each weight is freed when the next is quantised. The last layer, which costs more than others (bench/LOG.md,
    2026-11-25), stays as it is, and so do cross attention, what latents are expanded by (`latent_attention`), and a
    linear whose sides are not multiples of 16. One that is in `means` gets a bias that takes off what rounding adds to
    its outputs on average.
    """
    layers = getattr(decoder, "layers", None)
    last = set(layers[-1].modules()) if isinstance(layers, nn.ModuleList) and len(layers) > 1 else set()
    found = [
        (parent, name)
        for parent in decoder.modules()
        if parent not in last and not type(parent).__name__.endswith("CrossAttention")
        for name, child in parent.named_children()
        if type(child) is nn.Linear and fits(child.weight) and name != EXPANSION
    ]
    for parent, name in found:
        linear: Any = getattr(parent, name)
        quantized = Fp8Linear.quantized(linear.weight, linear.bias)
        if linear in means:
            lacking = offset(linear.weight, quantized.weight, quantized.scale, means.pop(linear))
            bias = lacking if linear.bias is None else lacking + linear.bias
            quantized.bias = nn.Parameter(bias.to(linear.weight.dtype), requires_grad=False)
        setattr(parent, name, quantized)
    return len(found)


def fits(weight: torch.Tensor) -> bool:
    """Whether a weight `[out, in]` can be that of an `Fp8Linear`."""
    return weight.dim() == 2 and all(side % FP8_MULTIPLE == 0 for side in weight.shape)


def refuse_experts(text_config: object) -> None:
    """Raise ModelLoadError for a mixture of experts, whose experts are no linears."""
    if any((getattr(text_config, name, None) or 0) > 1 for name in _EXPERTS):
        raise ModelLoadError(
            f"{getattr(text_config, 'model_type', 'it')} has experts, and FP8 serves dense models only",
            hint="quantization: none serves it if the weights are there unquantised.",
        )


@torch.inference_mode()
def check_products(decoder: nn.Module) -> None:
    """Raise ModelLoadError if this device and torch get the product of the first `Fp8Linear` wrong."""
    linear = next((module for module in decoder.modules() if isinstance(module, Fp8Linear)), None)
    if linear is None or not linear.weight.is_cuda:
        return
    generator = torch.Generator(linear.weight.device).manual_seed(0)
    rows = torch.randn(CHECK_ROWS, linear.in_features, generator=generator, device=linear.weight.device)
    rows = rows.bfloat16()
    wanted = linear.plain_product(rows).float()
    error = float((linear(rows).float() - wanted).abs().mean() / wanted.std().clamp(min=1e-12))
    if not error <= CHECK_TOLERANCE:
        raise ModelLoadError(
            f"FP8 products on this GPU are off by {error:.3g} of their spread",
            hint="quantization: none computes without them.",
        )
