"""Decoder layers that whole-layer surgery knows: what is in one, whichever class of transformers it comes from.

All are attention and a gated MLP around one residual stream. Most norm what goes into each of the two; Gemma's norm
what comes out of them as well. What else differs is data: heads normed before they are turned (Qwen3, Gemma 3),
a part of the head that is turned (Phi-3), windows, caps, the activation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from engine.kernels.reference import ACTIVATIONS
from engine.models.fusion import FusedRMSNorm, MergedLinear, Undo

PRE_NORM = frozenset(
    {
        "LlamaDecoderLayer",
        "MistralDecoderLayer",
        "MllamaSelfAttentionDecoderLayer",
        "Phi3DecoderLayer",
        "Qwen2DecoderLayer",
        "Qwen2_5_VLDecoderLayer",
        "Qwen3DecoderLayer",
        "Qwen3VLTextDecoderLayer",
    }
)
SANDWICH = frozenset({"Gemma2DecoderLayer", "Gemma3DecoderLayer"})
"""With norms on both sides of attention and MLP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """One layer's operations and numbers."""

    kind: str
    """The class of transformers' layer."""
    layer_idx: int
    heads: int
    scaling: float
    window: int | None
    softcap: float | None
    activation: str
    """`silu` or `gelu_tanh`."""
    qkv: nn.Module
    """Queries, keys and values in one product, in this order."""
    output: nn.Module
    gate_up: nn.Module
    down: nn.Module
    input_norm: FusedRMSNorm
    mlp_norm: FusedRMSNorm
    attention_out_norm: FusedRMSNorm | None
    """Of what attention adds to the residual stream; None where it is added as it is."""
    mlp_out_norm: FusedRMSNorm | None
    q_norm: FusedRMSNorm | None
    k_norm: FusedRMSNorm | None


def plan_of(layer: nn.Module, max_head_dim: int) -> LayerPlan | None:
    """What a layer is made of, or None if it is not of a shape that is known, or lacks the fusions before this one."""
    name = type(layer).__name__
    if name not in PRE_NORM | SANDWICH:
        return None
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    config = attention.config
    qkv = _merged(attention, "qkv_proj", "q_proj")
    gate_up = _merged(mlp, "gate_up_proj", "gate_proj")
    activation = ACTIVATIONS.get(getattr(config, "hidden_activation", None) or config.hidden_act)
    if qkv is None or gate_up is None or activation is None or attention.head_dim > max_head_dim:
        return None
    names = {"input_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    if name in SANDWICH:
        names = {"input_norm": "input_layernorm", "attention_out_norm": "post_attention_layernorm",
                 "mlp_norm": "pre_feedforward_layernorm", "mlp_out_norm": "post_feedforward_layernorm"}  # fmt: skip
    norms: dict[str, Any] = {"attention_out_norm": None, "mlp_out_norm": None}
    norms |= {role: getattr(layer, attribute) for role, attribute in names.items()}
    norms |= {role: getattr(attention, role, None) for role in ("q_norm", "k_norm")}
    if not all(norm is None or isinstance(norm, FusedRMSNorm) for norm in norms.values()):
        return None
    return LayerPlan(
        kind=name,
        layer_idx=int(attention.layer_idx),
        heads=config.num_attention_heads,
        scaling=attention.scaling,
        window=_window(attention),
        softcap=attention.attn_logit_softcapping if name == "Gemma2DecoderLayer" else None,
        activation=activation,
        qkv=qkv,
        output=attention.o_proj,
        gate_up=gate_up,
        down=mlp.down_proj,
        **norms,
    )


def _merged(parent: nn.Module, own: str, first: str) -> nn.Module | None:
    """The one product: as the checkpoint has it (Phi-3), or as `merge_linears` made it."""
    merged = getattr(parent, own, None) or getattr(parent, first, None)
    if isinstance(merged, MergedLinear):
        return merged.linear
    return merged if hasattr(parent, own) else None


def _window(attention: Any) -> int | None:
    """Mistral's and Phi-3's attention read their window from the configuration; the others keep it by layer."""
    if type(attention).__name__ in ("MistralAttention", "Phi3Attention"):
        window: int | None = attention.config.sliding_window
    else:
        window = getattr(attention, "sliding_window", None)
    return window


def replace_each(
    decoder: Any, plans: list[LayerPlan | None], make: Callable[[LayerPlan], nn.Module], undo: Undo
) -> int:
    """Put what `make` makes of a layer's plan in its place, if all of a decoder's layers have one; the number.

    Layers of cross attention have none, and stay.
    """
    layers = decoder.layers
    known = [plan is not None or is_cross(layer) for layer, plan in zip(layers, plans, strict=True)] if plans else []
    if not known or not all(known):
        return 0
    for index, (layer, plan) in enumerate(zip(list(layers), plans, strict=True)):
        if plan is not None:
            layers[index] = make(plan)
            undo.append(partial(layers.__setitem__, index, layer))
    return sum(plan is not None for plan in plans)


def is_cross(layer: nn.Module) -> bool:
    """Whether a layer looks at images, and is skipped where nobody does."""
    return hasattr(layer, "cross_attn")


def plans_of(decoder: Any, max_head_dim: int) -> list[LayerPlan | None]:
    """The plan of each layer; empty where the decoder keeps its layers in another way."""
    layers = getattr(decoder, "layers", None)
    return [plan_of(layer, max_head_dim) for layer in layers] if isinstance(layers, nn.ModuleList) else []
