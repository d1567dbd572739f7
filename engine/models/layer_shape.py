"""Decoder layers of the Llama shape: what whole-layer surgery knows how to replace."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from engine.models.fusion import FusedRMSNorm, MergedLinear, Undo

LAYER_CLASSES = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"})
"""Pre-norm layers of attention and gated MLP, with full rotary embedding and nothing else."""


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """The attention of one such layer."""

    heads: int
    scaling: float
    window: int | None


def plan_of(layer: nn.Module, max_head_dim: int) -> LayerPlan | None:
    """What a layer's attention is, or None if the layer is not of this shape."""
    if type(layer).__name__ not in LAYER_CLASSES:
        return None
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    config = attention.config
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, attention.head_dim
    fits = (
        all(isinstance(module, MergedLinear) for module in (attention.q_proj, mlp.gate_proj))
        and all(isinstance(norm, FusedRMSNorm) for norm in (layer.input_layernorm, layer.post_attention_layernorm))
        and config.hidden_act in ("silu", "swish")
        and head_dim <= max_head_dim
        and sum(attention.q_proj.sizes) == (heads + 2 * kv_heads) * head_dim
    )
    return LayerPlan(heads, attention.scaling, _window(attention)) if fits else None


def _window(attention: Any) -> int | None:
    """Mistral's attention reads its window from the configuration, Qwen2's keeps it by layer, Llama has none."""
    if type(attention).__name__ == "MistralAttention":
        window: int | None = attention.config.sliding_window
    else:
        window = getattr(attention, "sliding_window", None)
    return window


def replace_each(
    decoder: Any, make: Callable[[nn.Module, LayerPlan], nn.Module], undo: Undo, *, max_head_dim: int
) -> int:
    """Put what `make` makes of a layer in its place, if all of a decoder's layers are of this shape; the number."""
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return 0
    plans = [plan_of(layer, max_head_dim) for layer in layers]
    if None in plans:
        return 0
    for index, (layer, plan) in enumerate(zip(list(layers), plans, strict=True)):
        assert plan is not None
        layers[index] = make(layer, plan)
        undo.append(partial(layers.__setitem__, index, layer))
    return len(layers)
