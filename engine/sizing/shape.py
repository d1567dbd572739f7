"""A model in numbers, whole or one rank's part of it: its weights, and what its layers keep of a token."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from engine.sizing.cache import LayerShape
from engine.sizing.towers import Tower

FP8_CAPABILITY = (8, 9)
"""Of the first GPUs whose matrix units take e4m3."""
FP8_MULTIPLE = 16
"""What both sides of a weight must be a multiple of to be in FP8 (`torch._scaled_mm`)."""
FP8_BLOCK = 128
"""Sides of the blocks that have a scale each in weights of experts in FP8, as DeepSeek-R1's checkpoint has them."""
SCALE_BYTES = 4
"""Of an output of a linear in FP8, beside a bias in 16 bits; of a block of an expert."""

Storage = Literal["plain", "quantized", "stored"]
"""How weights are kept: in the model's dtype; in FP8 but for the last layer, as `quantize_linears` leaves them; or in
FP8 in all layers, as files have them."""


@dataclass(frozen=True, slots=True)
class Linear:
    """One product of a layer: numbers of inputs and of outputs."""

    inputs: int
    outputs: int
    has_bias: bool = False
    stays: bool = False
    """Whether it is never in FP8: what makes keys and values of latents, and cross attention."""

    @property
    def numbers(self) -> int:
        """Of its weight and its bias."""
        return self.inputs * self.outputs + self.outputs * self.has_bias

    @property
    def fits_fp8(self) -> bool:
        """Whether its weight can be in FP8."""
        return not self.stays and self.inputs % FP8_MULTIPLE == self.outputs % FP8_MULTIPLE == 0


@dataclass(frozen=True, slots=True)
class Experts:
    """Those of one layer: MLPs, of which each token goes through a few."""

    number: int
    chosen: int
    """By a token."""
    hidden: int
    inner: int
    """Numbers between gate and down."""

    @property
    def numbers(self) -> int:
        """Of all weights."""
        return self.number * 3 * self.hidden * self.inner

    @property
    def fp8_bytes(self) -> int:
        """Of all weights in e4m3, with their scales."""
        blocks = 3 * -(-self.hidden // FP8_BLOCK) * -(-self.inner // FP8_BLOCK)
        return self.numbers + self.number * blocks * SCALE_BYTES


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model in numbers. Of several ranks each has one like it: then these are the numbers of its part."""

    vocab_size: int
    """Of the whole."""
    hidden_size: int
    context: int
    """The model's own."""
    linears: tuple[tuple[Linear, ...], ...]
    """Of each layer, without what only some tokens go through."""
    embedding: int
    """Numbers of the input embedding."""
    head: int
    """Numbers of the output head, which is the same tensor if `is_tied`."""
    is_tied: bool
    other: int
    """Numbers of norms and routers."""
    cache: Mapping[int, LayerShape]
    """Of each layer that keeps keys and values of tokens."""
    queries: int = 0
    """Numbers of a token's queries, where these are in the space of latents."""
    experts: Experts | None = None
    expert_layers: int = 0
    """How many layers have them: the last ones."""
    ranks: int = 1
    """That share the model."""
    tower: Tower | None = None
    """Of a model that sees: every rank has it, never in FP8."""

    @property
    def parameters(self) -> int:
        """All its numbers."""
        linears = sum(linear.numbers for layer in self.linears for linear in layer)
        text = self.embedding + (0 if self.is_tied else self.head) + self.other + linears + self.expert_numbers
        return text + self.tower_numbers

    @property
    def tower_numbers(self) -> int:
        """Of the weights of what sees."""
        return 0 if self.tower is None else self.tower.numbers

    @property
    def of_text(self) -> "ModelShape":
        """What steps without images have to do with: neither what sees, nor layers in which tokens look at images."""
        return replace(self, linears=tuple(self.linears[layer] for layer in self.cache), tower=None)

    @property
    def expert_numbers(self) -> int:
        """Of the weights of all experts."""
        return 0 if self.experts is None else self.expert_layers * self.experts.numbers

    @property
    def widest(self) -> int:
        """Inputs of the widest product, which the last of an MLP is, or what queries of latents take."""
        return max(self.queries, *(linear.inputs for layer in self.linears for linear in layer))

    def weight_bytes(self, itemsize: int, storage: Storage = "plain") -> int:
        """Of all weights. What is not in FP8 is of so many bytes each."""
        saved = self.expert_numbers * itemsize - self.expert_bytes(itemsize, storage)
        for linear in self.in_fp8(storage):
            saved += linear.inputs * linear.outputs * (itemsize - 1) - SCALE_BYTES * linear.outputs
            if storage == "quantized" and not linear.has_bias:  # it gets one that takes off what rounding adds
                saved -= linear.outputs * itemsize
        return self.parameters * itemsize - saved

    def expert_bytes(self, itemsize: int, storage: Storage = "plain") -> int:
        """Of the weights of all experts, which `weight_bytes` counts as well."""
        if self.experts is None:
            return 0
        last = min(1, self.expert_layers, len(self.linears) - 1)
        whole = {"plain": self.expert_layers, "quantized": last, "stored": 0}[storage]
        return whole * self.experts.numbers * itemsize + (self.expert_layers - whole) * self.experts.fp8_bytes

    def in_fp8(self, storage: Storage) -> list[Linear]:
        """The linears that are in FP8."""
        if storage == "plain":
            return []
        layers = self.linears[:-1] if storage == "quantized" and len(self.linears) > 1 else self.linears
        return [linear for layer in layers for linear in layer if linear.fits_fp8]
