"""A whole decoder layer for CPUs, from four packed linears and four small kernels, for the Llama shape of layer.

At one row most of a step would otherwise be the thirty small operations of each layer, not its matrix products. The
residual stream and the rotary angles stay in fp32, so that bf16 is closer to fp32 than transformers' own bf16 is.
"""

from functools import partial
from typing import Any

import torch
from torch import nn

from engine.attention.context import attention_step_of
from engine.attention.cpu import CpuAttention
from engine.kernels.cpu import MAX_HEAD_DIM, CpuKernels
from engine.kernels.cpu_layer import QuantizedLayer, QuantizedLayerParts
from engine.models.fusion import Undo
from engine.models.layer_shape import LayerPlan, plans_of, replace_each
from engine.models.quantized import QuantizedLinear

KINDS = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"})
"""The kernels in C turn whole heads, norm only what goes into attention and MLP, and know only SiLU."""


class CpuDecoderLayer(nn.Module):
    """Does what the layer it is made from does. fp32 or bf16 hidden states in, fp32 out."""

    def __init__(self, plan: LayerPlan, kernels: CpuKernels) -> None:
        super().__init__()
        self.qkv, self.output, self.gate_up, self.down = plan.qkv, plan.output, plan.gate_up, plan.down
        self._plan = plan
        self._kernels = kernels
        self._whole = _whole_layer(plan)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_: object,
    ) -> torch.Tensor:
        """hidden_states fp32 `[1, T, dim]`, cos and sin fp32 `[1, T, head_dim]`; returns hidden_states, changed."""
        kernels, plan = self._kernels, self._plan
        residual = hidden_states[0]
        backend, cache = attention_step_of(plan.layer_idx)
        assert isinstance(backend, CpuAttention)
        cos, sin = position_embeddings
        if self._whole is not None and backend.run_layer(self._whole, residual, cos[0], sin[0], cache):
            return hidden_states
        normed = kernels.add_rms_norm(residual, None, plan.input_norm.weight, plan.input_norm.eps)
        qkv = self.qkv(normed)
        attended = backend.run_packed(
            qkv, cos[0], sin[0], cache, heads=plan.heads, scaling=plan.scaling, window=plan.window
        )
        delta = self.output(attended)
        normed = kernels.add_rms_norm(residual, delta, plan.mlp_norm.weight, plan.mlp_norm.eps)
        residual += self.down(kernels.silu_mul(self.gate_up(normed)))
        return hidden_states


def _whole_layer(plan: LayerPlan) -> QuantizedLayer | None:
    """The layer in one call, where all its weights are quantised."""
    linears = (plan.qkv, plan.output, plan.gate_up, plan.down)
    products = [linear.product for linear in linears if isinstance(linear, QuantizedLinear)]
    if len(products) < len(linears):
        return None
    qkv, output, gate_up, down = products
    parts = QuantizedLayerParts(
        qkv=qkv,
        output=output,
        gate_up=gate_up,
        down=down,
        input_norm=plan.input_norm.weight.data,
        mlp_norm=plan.mlp_norm.weight.data,
        input_eps=plan.input_norm.eps,
        mlp_eps=plan.mlp_norm.eps,
        heads=plan.heads,
        scaling=plan.scaling,
        window=plan.window,
    )
    return QuantizedLayer(parts)


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
    plans = [plan if plan is not None and plan.kind in KINDS else None for plan in plans_of(decoder, MAX_HEAD_DIM)]
    count = replace_each(decoder, plans, lambda plan: CpuDecoderLayer(plan, kernels), undo)
    if count:
        embedding = decoder.embed_tokens
        decoder.embed_tokens = Fp32Embedding(embedding)
        undo.append(partial(setattr, decoder, "embed_tokens", embedding))
    return count
