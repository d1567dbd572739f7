"""A whole decoder layer for CUDA in ten launches, for the Llama shape of layer; transformers' own has about 43.

Norm, projection, rotary embedding with the write into the cache, attention (and the joining of its parts), projection,
addition with norm, projection, activation, projection, addition.
"""

from typing import Any

import torch
from torch import nn

from engine.attention.context import attention_step_of
from engine.attention.triton import TritonAttention
from engine.kernels.triton_layer import activate_mul, add_rms_norm
from engine.models.fusion import Undo
from engine.models.layer_shape import LayerPlan, replace_each

MAX_HEAD_DIM = 256


class CudaDecoderLayer(nn.Module):
    """Does what the layer it is made from does, in the model's dtype."""

    def __init__(self, layer: nn.Module, plan: LayerPlan) -> None:
        super().__init__()
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        self.layer_idx = int(attention.layer_idx)
        self.input_norm: Any = layer.input_layernorm
        self.mlp_norm: Any = layer.post_attention_layernorm
        self.qkv, self.output = attention.q_proj.linear, attention.o_proj
        self.gate_up, self.down = mlp.gate_proj.linear, mlp.down_proj
        self._plan = plan

    def forward(
        self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor], **_: object
    ) -> torch.Tensor:
        """hidden_states `[1, T, dim]`, cos and sin `[1, T, head_dim]`; returns hidden_states, changed."""
        plan = self._plan
        residual = hidden_states[0]
        normed = add_rms_norm(residual, None, self.input_norm.weight, self.input_norm.eps)
        backend, cache = attention_step_of(self.layer_idx)
        assert isinstance(backend, TritonAttention)
        cos, sin = position_embeddings
        attended = backend.run_packed(
            self.qkv(normed), cos[0], sin[0], cache, heads=plan.heads, scaling=plan.scaling, window=plan.window
        )
        normed = add_rms_norm(self.output(attended), residual, self.mlp_norm.weight, self.mlp_norm.eps)
        residual += self.down(activate_mul(self.gate_up(normed), "silu"))
        return hidden_states


def replace_cuda_layers(model: Any, undo: Undo) -> int:
    """Put `CudaDecoderLayer`s in the place of a decoder's layers, if it knows them all; the number replaced."""
    return replace_each(model.get_decoder(), CudaDecoderLayer, undo, max_head_dim=MAX_HEAD_DIM)
