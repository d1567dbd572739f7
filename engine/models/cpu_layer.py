"""A whole decoder layer for CPUs, from four packed linears and four small kernels, for the Llama shape of layer.

At one row most of a step would otherwise be the thirty small operations of each layer, not its matrix products. The
residual stream and the rotary angles stay in fp32, so that bf16 is closer to fp32 than transformers' own bf16 is.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from engine.attention.context import attention_step_of
from engine.attention.cpu import CpuAttention
from engine.kernels.cpu import MAX_HEAD_DIM, CpuKernels
from engine.models.fusion import FusedRMSNorm, MergedLinear, Undo

LAYER_CLASSES = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"})
"""Pre-norm layers of attention and gated MLP, with full rotary embedding and nothing else."""


@dataclass(frozen=True, slots=True)
class _Shape:
    heads: int
    scaling: float
    window: int | None


class CpuDecoderLayer(nn.Module):
    """Does what the layer it is made from does. fp32 or bf16 hidden states in, fp32 out."""

    def __init__(self, layer: nn.Module, shape: _Shape, kernels: CpuKernels) -> None:
        super().__init__()
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        self.layer_idx = int(attention.layer_idx)
        self.input_norm: Any = layer.input_layernorm
        self.mlp_norm: Any = layer.post_attention_layernorm
        self.qkv, self.output = attention.q_proj.linear, attention.o_proj
        self.gate_up, self.down = mlp.gate_proj.linear, mlp.down_proj
        self._shape = shape
        self._kernels = kernels

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_: object,
    ) -> torch.Tensor:
        """hidden_states fp32 `[1, T, dim]`, cos and sin fp32 `[1, T, head_dim]`; returns hidden_states, changed."""
        kernels, shape = self._kernels, self._shape
        residual = hidden_states[0]
        normed = kernels.add_rms_norm(residual, None, self.input_norm.weight, self.input_norm.eps)
        qkv = self.qkv(normed)
        backend, cache = attention_step_of(self.layer_idx)
        assert isinstance(backend, CpuAttention)
        cos, sin = position_embeddings
        attended = backend.run_packed(
            qkv, cos[0], sin[0], cache, heads=shape.heads, scaling=shape.scaling, window=shape.window
        )
        delta = self.output(attended)
        normed = kernels.add_rms_norm(residual, delta, self.mlp_norm.weight, self.mlp_norm.eps)
        residual += self.down(kernels.silu_mul(self.gate_up(normed)))
        return hidden_states


class Fp32Embedding(nn.Module):
    """The input embedding with its output in fp32, from which transformers takes the dtype of cos and sin as well."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """input_ids int64 `[1, T]` → fp32 `[1, T, dim]`."""
        return torch.as_tensor(self.embedding(input_ids).float())


def replace_layers(model: Any, kernels: CpuKernels, undo: Undo) -> int:
    """Put `CpuDecoderLayer`s in the place of a decoder's layers, if it knows them all; the number replaced."""
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return 0
    shapes = [_shape_of(layer) for layer in layers]
    if None in shapes:
        return 0
    for index, (layer, shape) in enumerate(zip(list(layers), shapes, strict=True)):
        assert shape is not None
        layers[index] = CpuDecoderLayer(layer, shape, kernels)
        undo.append(partial(layers.__setitem__, index, layer))
    embedding = decoder.embed_tokens
    decoder.embed_tokens = Fp32Embedding(embedding)
    undo.append(partial(setattr, decoder, "embed_tokens", embedding))
    return len(layers)


def _shape_of(layer: nn.Module) -> _Shape | None:
    """The layer's attention widths, or None if it is not of the shape this module knows."""
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
        and head_dim <= MAX_HEAD_DIM
        and sum(attention.q_proj.sizes) == (heads + 2 * kv_heads) * head_dim
    )
    return _Shape(heads, attention.scaling, _window(attention)) if fits else None


def _window(attention: Any) -> int | None:
    """Mistral's attention reads its window from the configuration, Qwen2's keeps it by layer, Llama has none."""
    if type(attention).__name__ == "MistralAttention":
        window: int | None = attention.config.sliding_window
    else:
        window = getattr(attention, "sliding_window", None)
    return window
