"""Linears in FP8: weights in e4m3 with a scale for each output, activations with a scale for each token.

Both are found from the numbers themselves, the second anew in every step. On CUDA the product is `torch._scaled_mm`'s,
or for a few rows our own where that is faster; elsewhere plain torch computes the same, slowly. docs/models.md says
what it costs in accuracy. The experts of mixtures become `Fp8Experts`, which have finer scales, as `BlockFp8Linear`s of
checkpoints have.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from engine.errors import ModelLoadError
from engine.kernels.reference import FEW_ROWS, Rounded, quantize_rows
from engine.models.experts import Fp8Experts, activation_of, expert_places
from engine.models.fp8_blocks import BlockFp8Linear
from engine.models.fp8_offsets import InputMeans, offset
from engine.sizing.shape import FP8_MULTIPLE

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
        self.few_rows: dict[int, tuple[int, ...] | None] = {}
        """For one row and (8) for up to 16: the launch shape of our own product, None for cuBLAS's."""

    @property
    def numerics(self) -> str:
        """What may change the last bits of a product: it was measured, so the next start may choose otherwise."""
        return f"{self.in_features}x{self.out_features} in FP8:{self.few_rows}" if self.few_rows else ""

    @classmethod
    def quantized(cls, weight: torch.Tensor, bias: torch.Tensor | None) -> "Fp8Linear":
        """Of a weight `[out, in]` in any wider dtype."""
        numbers, scale = quantize_rows(weight.detach())
        return cls(numbers, scale[:, 0], bias)

    def forward(self, x: torch.Tensor | Rounded) -> torch.Tensor:
        """x `[..., in]` → `[..., out]` in x's dtype; of rows that are `Rounded`, `[T, out]`."""
        if isinstance(x, Rounded):
            return self._product(x)
        rows = x.reshape(-1, self.in_features)
        if not self.rounds_rows:
            weight = self.weight.to(rows.dtype) * self.scale[:, None].to(rows.dtype)
            return nn.functional.linear(x, weight, None if self.bias is None else self.bias.to(rows.dtype))
        if rows.is_cuda or self.few_rows:
            from engine.kernels.triton_fp8 import quantize_rows as round_rows  # an installation for CPUs has no triton

            product = self._product(round_rows(rows.contiguous()))
        else:
            product = self.plain_product(rows)
        return product.view(*x.shape[:-1], self.out_features)

    def _product(self, x: Rounded) -> torch.Tensor:
        rows = len(x.numbers)
        shape = self.few_rows.get(1 if rows == 1 else 8) if 1 <= rows <= FEW_ROWS else None
        if shape is not None:
            from engine.kernels.triton_fp8 import few_rows_product

            return few_rows_product(x, self.weight, self.scale, self.bias, shape)
        return self._product_on_cuda(x) if x.numbers.is_cuda else self._plain_product(x)

    def plain_product(self, rows: torch.Tensor) -> torch.Tensor:
        """rows `[T, in]` → `[T, out]`: what the product on CUDA must be, but for its own rounding."""
        return self._plain_product(Rounded(*quantize_rows(rows), rows.dtype))

    def _plain_product(self, x: Rounded) -> torch.Tensor:
        product = x.numbers.float() @ self.weight.float().t() * x.scales * self.scale
        return (product if self.bias is None else product + self.bias.float()).to(x.dtype)

    def _product_on_cuda(self, x: Rounded) -> torch.Tensor:
        # Scales by row and column come out in bf16 only, to which a bias in bf16, and no other, is added before it is
        # written. The second factor must lie column by column, as a weight does.
        is_bf16 = self.bias is not None and x.dtype == self.bias.dtype == torch.bfloat16
        if is_bf16 and self._adds_bias:
            try:
                return self._scaled(x, self.bias)
            except RuntimeError as error:  # cuBLAS knows no product of some shapes that adds a bias
                if "NOT_SUPPORTED" not in str(error):
                    raise
                self._adds_bias = False
        product = self._scaled(x, None)
        return (product if self.bias is None else product + self.bias).to(x.dtype)

    def _scaled(self, x: Rounded, bias: torch.Tensor | None) -> torch.Tensor:
        return torch._scaled_mm(
            x.numbers,
            self.weight.t(),
            scale_a=x.scales,
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
    rounding = [module for module in model.modules() if isinstance(module, Fp8Linear | BlockFp8Linear | Fp8Experts)]
    for module in rounding:
        module.rounds_rows = False
    try:
        yield
    finally:
        for module in rounding:
            module.rounds_rows = True


@torch.inference_mode()
def quantize_linears(decoder: nn.Module, means: InputMeans) -> int:
    """Put an `Fp8Linear` in the place of each linear of a decoder, for good; the number changed.

    Each weight is freed when the next is quantised. The last layer, which costs more than others (bench/LOG.md,
    2026-11-25), stays as it is, and so do cross attention, what latents are expanded by (`latent_attention`), and a
    linear whose sides are not multiples of 16. One that is in `means` gets a bias that takes off what rounding adds to
    its outputs on average.
    """
    last = _last_layer(decoder)
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


@torch.inference_mode()
def quantize_experts(decoder: nn.Module) -> int:
    """Put `Fp8Experts` in the place of the experts of all layers but the last, for good; how many layers.

    Raises ModelLoadError for experts of another form, which FP8 is not computed in.
    """
    last = _last_layer(decoder)
    found = [(parent, name) for parent, name in expert_places(decoder) if parent not in last]
    for parent, name in found:
        experts: Any = getattr(parent, name)
        activation = activation_of(experts)
        if activation is None:
            raise ModelLoadError(
                f"its experts ({type(experts).__name__}) are of a form that FP8 is not computed in",
                hint="quantization: none serves it if the weights are there unquantised.",
            )
        setattr(parent, name, Fp8Experts.quantized(experts.gate_up_proj, experts.down_proj, activation))
    return len(found)


def _last_layer(decoder: nn.Module) -> set[nn.Module]:
    """The modules of a decoder's last layer, if it has several."""
    layers = getattr(decoder, "layers", None)
    return set(layers[-1].modules()) if isinstance(layers, nn.ModuleList) and len(layers) > 1 else set()


def fits(weight: torch.Tensor) -> bool:
    """Whether a weight `[out, in]` can be that of an `Fp8Linear`."""
    return weight.dim() == 2 and all(side % FP8_MULTIPLE == 0 for side in weight.shape)


@torch.inference_mode()
def check_products(decoder: nn.Module) -> None:
    """Raise ModelLoadError if this device and torch get the products of the first FP8 linear or experts wrong."""
    for product in (_linear_error(decoder), _experts_error(decoder)):
        if product is not None and not product <= CHECK_TOLERANCE:
            raise ModelLoadError(
                f"FP8 products on this GPU are off by {product:.3g} of their spread",
                hint="quantization: none computes without them.",
            )


def _linear_error(decoder: nn.Module) -> float | None:
    linear = next((module for module in decoder.modules() if isinstance(module, Fp8Linear | BlockFp8Linear)), None)
    if linear is None or not linear.weight.is_cuda:
        return None
    rows = _check_rows(linear.in_features, linear.weight.device)
    return spread_error(linear(rows), linear.plain_product(rows))


def _experts_error(decoder: nn.Module) -> float | None:
    experts = next((module for module in decoder.modules() if isinstance(module, Fp8Experts)), None)
    if experts is None or not experts.down_proj.is_cuda:
        return None
    num_experts, hidden, _ = experts.down_proj.shape
    rows = _check_rows(hidden, experts.down_proj.device)
    choices = (torch.arange(2 * CHECK_ROWS, device=rows.device) % num_experts).view(CHECK_ROWS, 2)
    weights = torch.ones(CHECK_ROWS, 2, device=rows.device)
    return spread_error(experts(rows, choices, weights), experts.plain_product(rows, choices, weights))


def _check_rows(width: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(CHECK_ROWS, width, generator=generator, device=device).bfloat16()


def spread_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """On average, of the spread of what is wanted."""
    wanted = wanted.float()
    return float((found.float() - wanted).abs().mean() / wanted.std().clamp(min=1e-12))
