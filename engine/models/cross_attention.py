"""Layers of cross attention (Mllama), in which tokens look at the states of images.

transformers keeps the states of one conversation; here each token of a packed step looks at images of its own, whose
keys and values were projected once. `looking` says which, while a forward runs. Tokens that see no image get nothing
from such a layer, neither from its attention nor from its MLP; transformers zeroes only the MLP, and lets tokens before
the first image attend to all of it. Meta's own code, as published with the weights, zeroes both.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from engine.device.ranks import Ranks


@dataclass(frozen=True, slots=True)
class LookAt:
    """Consecutive tokens of a step, and what they look at."""

    tokens: slice
    states: list[torch.Tensor]
    """Of each image `[layers, 2, KV, states, D]`: its keys and values in each layer of cross attention."""


class _Step:
    looks: list[LookAt] | None = None


_step = _Step()


@contextmanager
def looking(looks: list[LookAt]) -> Iterator[None]:
    """Make these the looks of the forward that runs inside."""
    assert _step.looks is None, "steps do not nest"
    _step.looks = looks
    try:
        yield
    finally:
        _step.looks = None


class CrossAttention(nn.Module):
    """Stands in the place of transformers' module, with its parameters under names that no surgery merges."""

    def __init__(self, attention: Any, number: int, ranks: Ranks | None = None) -> None:
        """`number` counts the model's layers of cross attention. Of `ranks` the first alone has what is looked at."""
        super().__init__()
        self._ranks = ranks
        self.number = number
        self.heads: int = attention.num_heads
        self.kv_heads: int = attention.num_key_value_heads
        self.scaling: float = attention.scaling
        self.head_dim: int = attention.head_dim
        self.query, self.key, self.value = attention.q_proj, attention.k_proj, attention.v_proj
        self.output = attention.o_proj
        self.query_norm, self.key_norm = attention.q_norm, attention.k_norm

    def bytes_per_state(self, dtype: torch.dtype) -> int:
        """Memory of the key and the value of one state."""
        return 2 * self.kv_heads * self.head_dim * dtype.itemsize

    def project(self, states: torch.Tensor) -> torch.Tensor:
        """Keys and values `[2, KV, S, D]` of an image's states `[S, hidden]`."""
        keys = self.key_norm(self.key(states).view(len(states), self.kv_heads, -1))
        values = self.value(states).view(len(states), self.kv_heads, -1)
        return torch.stack([keys, values]).transpose(1, 2).contiguous()

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        """hidden_states `[1, T, hidden]`; what is added to them."""
        if self._ranks is None:
            return self._attend(hidden_states), None
        output = self._attend(hidden_states) if self._ranks.leads else torch.empty_like(hidden_states)
        self._ranks.share(output)
        return output, None

    def _attend(self, hidden_states: torch.Tensor) -> torch.Tensor:
        assert _step.looks is not None, "a layer of cross attention is skipped where nobody looks at an image"
        tokens = hidden_states.shape[1]
        queries = self.query_norm(self.query(hidden_states).view(tokens, self.heads, -1)).transpose(0, 1)
        found = torch.zeros_like(queries)
        for look in _step.looks:
            parts = [states[self.number] for states in look.states]
            keys, values = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
            asked = queries[:, look.tokens]
            # The heads of a group are rows of one product.
            packed = asked.reshape(1, self.kv_heads, -1, asked.shape[2])
            seen = F.scaled_dot_product_attention(packed, keys[None], values[None], scale=self.scaling)
            found[:, look.tokens] = seen.view(asked.shape)
        return torch.as_tensor(self.output(found.transpose(0, 1).reshape(1, tokens, -1)).contiguous())


def replace_cross_attention(model: Any, ranks: Ranks | None) -> list[CrossAttention]:
    """Put ours in the place of each layer's cross attention, for good; in the order of the layers."""
    found: list[CrossAttention] = []
    for layer in model.get_decoder().layers:
        if hasattr(layer, "cross_attn"):
            layer.cross_attn = CrossAttention(layer.cross_attn, len(found), ranks)
            found.append(layer.cross_attn)
    return found


def cross_inputs(looks: list[LookAt], like: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a model must be given so that it runs those layers for the tokens that look: `like` `[T]` is on its device.

    The states are nowhere: they only say that there are some.
    """
    shown = torch.zeros(1, len(like), 1, 1, device=like.device)
    for look in looks:
        shown[:, look.tokens] = 1
    return {"cross_attention_mask": shown, "cross_attention_states": torch.empty(1, 0, 1, device=like.device)}
