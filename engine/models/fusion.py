"""Load-time surgery on a transformers model: fewer, larger operations with the same result.

Each change is made where the modules have the shape it knows, and left undone elsewhere, so an architecture nobody has
thought of still runs as transformers wrote it. `apply_checked` holds the changed model against itself.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from engine.device.ranks import Ranks
from engine.models.fp8 import Fp8Linear
from engine.models.fp8_blocks import BlockFp8Linear
from engine.models.load_check import moved
from engine.models.quantized import QuantizedLinear

logger = logging.getLogger(__name__)

MERGES = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Linears of one parent that read the same input."""
MERGEABLE = (nn.Linear, Fp8Linear, BlockFp8Linear, QuantizedLinear)
"""Of what kind they are: all of the same."""

Undo = list[Callable[[], None]]
"""How to take back what was changed, in the order it was done."""


class MergedLinear(nn.Module):
    """Stands in the first of several linears that read one input: computes all, returns the first slice.

    The other slices wait for their `MergedSlice`, which must be called next and with the same input tensor.
    """

    def __init__(self, linears: list[Any]) -> None:
        """Of `nn.Linear`s, `QuantizedLinear`s, or linears in FP8, whose scales stay as they are."""
        super().__init__()
        self.sizes = [linear.out_features for linear in linears]
        self.linear = _merged(linears)
        self._input: torch.Tensor | None = None
        self._slices: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x `[..., in]` → the first slice `[..., sizes[0]]`."""
        first, *rest = self.linear(x).split(self.sizes, dim=-1)
        self._input, self._slices = x, rest
        return torch.as_tensor(first)

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """The next slice for the input that `forward` has seen."""
        assert x is self._input, "a merged linear was called with another input than its first part"
        result = self._slices.pop(0)
        if not self._slices:
            self._input = None
        return result


def _merged(linears: list[Any]) -> nn.Module:
    """One linear with the outputs of several."""
    first = linears[0]
    if isinstance(first, QuantizedLinear):
        return QuantizedLinear.joined(linears)
    names = [name for name in ("weight", "scale", "bias") if getattr(first, name, None) is not None]
    whole = {name: _joined([getattr(linear, name) for linear in linears]) for name in names}
    if isinstance(first, Fp8Linear | BlockFp8Linear):
        return type(first)(whole["weight"], whole["scale"], whole.get("bias"))
    outputs = sum(linear.out_features for linear in linears)
    merged = nn.Linear(first.in_features, outputs, bias="bias" in whole, device="meta")
    for name, tensor in whole.items():
        setattr(merged, name, nn.Parameter(tensor, requires_grad=False))
    return merged


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """One tensor of several, which become views of it: the change can be undone without holding weights twice."""
    kind = parts[0].dtype
    bytewise = kind == torch.float8_e4m3fn  # not every device joins the dtype itself
    whole = torch.cat([part.data.view(torch.uint8) if bytewise else part.data for part in parts]).view(kind)
    for part, view in zip(parts, torch.split(whole, [len(part) for part in parts]), strict=True):
        part.data = view
    return whole


class MergedSlice(nn.Module):
    """Stands in the other linears of a `MergedLinear`."""

    def __init__(self, merged: MergedLinear) -> None:
        super().__init__()
        self._merged = [merged]  # in a list, so that it is not registered as a submodule twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The kept slice."""
        return self._merged[0].take(x)


class PackedLinear(nn.Module):
    """A linear whose weight is laid out for oneDNN: about twice as fast on a CPU at one row in bf16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x `[..., in]` → `[..., out]`."""
        return torch.as_tensor(torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], ""))


class PackedHead(PackedLinear):
    """The output head in bf16 on a CPU, with logits in fp32 that are finer than bf16 where it matters.

    oneDNN rounds each product to bf16, whose steps near a logit of 20 are 0.125: enough to make ties of the best
    tokens, or to swap them. `shift`, about the largest logit, is taken off before the rounding and added again in fp32,
    so the rounding error is small for the likely tokens and falls on the unlikely ones.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.shift = 0.0
        self._shifted_bias: torch.Tensor | None = linear.bias

    def calibrate(self, largest: float) -> None:
        """Set the shift; `largest` is a usual largest logit."""
        if self._shifted_bias is None:  # a bias of the head's own would lose by being rounded together with the shift
            self._shifted_bias = torch.full((self.out_features,), -largest, dtype=torch.bfloat16)
            self.shift = -float(self._shifted_bias[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x bf16 `[..., in]` → logits fp32 `[..., out]`."""
        shifted = torch.ops.mkldnn._linear_pointwise(x, self.packed, self._shifted_bias, "none", [], "")
        return torch.as_tensor(shifted.float().add_(self.shift))


class FusedRMSNorm(nn.Module):
    """RMSNorm in one operation. With `plus_one` the weight counts from 1, as Gemma's does."""

    def __init__(self, weight: torch.Tensor, eps: float, *, plus_one: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.eps = eps
        self.plus_one = plus_one
        # In fp32: near 1 bf16 is eight times coarser than at the small numbers that Gemma adds to it.
        self._scale = weight.float() + 1.0 if plus_one else weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x `[..., dim]` in the weight's dtype or fp32, normalised over the last dimension; in the weight's dtype."""
        if x.dtype == self._scale.dtype:
            return F.rms_norm(x, self.weight.shape, self._scale, self.eps).to(self.weight.dtype)
        if self.plus_one:
            return F.rms_norm(x.float(), self.weight.shape, self._scale, self.eps).to(self.weight.dtype)
        return F.rms_norm(x, self.weight.shape, None, self.eps).to(self.weight.dtype) * self.weight


def apply_checked(
    name: str,
    change: Callable[[Undo], int],
    before: torch.Tensor,
    check: Callable[[], torch.Tensor],
    *,
    tolerance: float,
    ranks: Ranks | None = None,
) -> tuple[int | None, torch.Tensor]:
    """Make a change to a model if it leaves the logits that `check` computes where they were `before`.

    Returns how many places were changed, and the logits now. The number is None if they moved by more than `tolerance`
    of their spread on average (`moved`); then the model is as it was. All `ranks` do the same; what one of them alone
    cannot compute is raised.
    """
    agree = bool if ranks is None else ranks.every
    undo: Undo = []
    try:
        count: int | None = change(undo)
    except Exception:  # a module of another shape than its names promise; without the change it works
        logger.warning("%s switched off: the model does not have the shape for them", name, exc_info=True)
        count = None
    if agree(count == 0):
        return 0, before
    after, error = before, float("inf")
    if agree(count is not None):
        try:
            after = check()
            error = moved(after, before)
        except Exception as failure:
            if ranks is not None and isinstance(failure, RuntimeError):
                raise  # of memory, or of a kernel: the others wait in the middle of their forward passes
            logger.warning("%s switched off: the model does not run with them", name, exc_info=True)
    if agree(error <= tolerance):
        return count, after
    for revert in reversed(undo):
        revert()
    logger.warning("%s switched off: they moved the logits by %.3g of their spread", name, error)
    return None, before


def pack_linears(model: nn.Module, dtype: torch.dtype) -> int:
    """Lay out every linear's weight for oneDNN; the number changed. For CPUs, after merging, for good."""
    if dtype not in (torch.bfloat16, torch.float32) or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return 0
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return 0  # oneDNN has no such layout without AVX512
    found = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.dtype == dtype
    ]
    # No list of the linears themselves: each must be gone before the next is packed, or all are held twice.
    for parent, name in found:
        is_head = name == "lm_head" and dtype == torch.bfloat16
        setattr(parent, name, (PackedHead if is_head else PackedLinear)(getattr(parent, name)))
    return len(found)


def replace_child(parent: nn.Module, name: str, new: nn.Module, undo: Undo) -> None:
    """Put a module in the place of another."""
    old = getattr(parent, name)
    setattr(parent, name, new)
    undo.append(lambda: setattr(parent, name, old))


def merge_linears(model: nn.Module, undo: Undo) -> int:
    """Compute linears that read the same input as one; the number of groups merged."""
    count = 0
    for parent in list(model.modules()):
        for names in MERGES:
            children = [getattr(parent, name, None) for name in names]
            linears = [child for child in children if type(child) in MERGEABLE]
            if len(linears) == len(names) and _mergeable(linears):
                merged = MergedLinear(linears)
                replace_child(parent, names[0], merged, undo)
                for name in names[1:]:
                    replace_child(parent, name, MergedSlice(merged), undo)
                count += 1
    return count


def _mergeable(linears: list[Any]) -> bool:
    first = linears[0]
    return all(
        type(linear) is type(first)
        and linear.in_features == first.in_features
        and (isinstance(linear, QuantizedLinear) or linear.weight.dtype == first.weight.dtype)
        and (linear.bias is None) == (first.bias is None)
        for linear in linears
    ) and all(linear.ends_with_a_block for linear in linears[:-1] if isinstance(linear, BlockFp8Linear))


def fuse_norms(model: nn.Module, undo: Undo) -> int:
    """Compute each RMSNorm in one operation; the number changed."""
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not type(child).__name__.endswith("RMSNorm") or isinstance(child, FusedRMSNorm):
                continue
            weight = getattr(child, "weight", None)
            eps = getattr(child, "variance_epsilon", getattr(child, "eps", None))
            if not isinstance(weight, torch.Tensor) or not isinstance(eps, float):
                continue
            plus_one = type(child).__name__.startswith("Gemma")
            replace_child(parent, name, FusedRMSNorm(weight.detach(), eps, plus_one=plus_one), undo)
            count += 1
    return count
