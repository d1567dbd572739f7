"""Attention of a tower whose patches see each other inside windows (Qwen2.5-VL), windows of one size at a time.

transformers calls attention for each window by itself, which of an image of a megapixel are a hundred in each of 28
layers, and reads their sizes off the device in each layer: a GPU would wait for all that. An image has windows of at
most four sizes: whole ones, and those cut by its right edge, its lower edge, and both.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True, slots=True)
class Group:
    """Windows of one size."""

    number: int
    size: int
    """Patches of each."""
    rows: torch.Tensor | None
    """int64 `[number * size]`: their patches, one window after another; None where these are all patches in order."""


class Windows:
    """The windows of the image that is looked at, found once for all layers."""

    def __init__(self) -> None:
        self._known: list[tuple[torch.Tensor, list[Group]]] = []

    def of(self, bounds: torch.Tensor) -> list[Group]:
        """By where windows begin and end, int `[windows + 1]`; the same tensor is met again in the next layer."""
        for known, groups in self._known:
            if known is bounds:
                return groups
        groups = groups_of(bounds.tolist(), bounds.device)
        self._known = [*self._known[-1:], (bounds, groups)]  # some layers see the whole image
        return groups


def groups_of(bounds: list[int], device: torch.device) -> list[Group]:
    """Windows by size, from where they begin and end."""
    by_size: dict[int, list[int]] = {}
    for begin, end in pairwise(bounds):
        if end > begin:
            by_size.setdefault(end - begin, []).extend(range(begin, end))
    if len(by_size) == 1:
        ((size, rows),) = by_size.items()
        return [Group(len(rows) // size, size, None)]
    return [
        Group(len(rows) // size, size, torch.tensor(rows, dtype=torch.int64, device=device))
        for size, rows in by_size.items()
    ]


class WindowAttention(nn.Module):
    """Stands in the place of transformers' module, with its parameters."""

    def __init__(self, attention: Any, windows: Windows) -> None:
        super().__init__()
        self._windows = windows
        self.qkv, self.proj = attention.qkv, attention.proj
        self.heads: int = attention.num_heads
        self.scaling: float = attention.scaling

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_: Any,
    ) -> torch.Tensor:
        """hidden_states `[patches, hidden]`, in the order of the windows that `cu_seqlens` bounds."""
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

        patches = len(hidden_states)
        query, key, value = self.qkv(hidden_states).view(patches, 3, self.heads, -1).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        found = torch.empty_like(query)
        for group in self._windows.of(cu_seqlens):
            asked, keys, values = (self._cut(part, group) for part in (query, key, value))
            seen = F.scaled_dot_product_attention(asked, keys, values, scale=self.scaling)
            seen = seen.transpose(1, 2).flatten(0, 1)
            found = seen if group.rows is None else found.index_copy_(0, group.rows, seen)
        return torch.as_tensor(self.proj(found.reshape(patches, -1)))

    @staticmethod
    def _cut(part: torch.Tensor, group: Group) -> torch.Tensor:
        """`[windows, heads, patches of one, D]`."""
        rows = part if group.rows is None else part[group.rows]
        return rows.view(group.number, group.size, *part.shape[1:]).transpose(1, 2)


def replace_windows(model: Any) -> int:
    """Put ours in the place of each layer's attention in a tower that has windows, for good; how many layers."""
    windows, count = Windows(), 0
    for module in model.modules():
        if type(getattr(module, "attn", None)).__name__ == "Qwen2_5_VLVisionAttention":
            module.attn = WindowAttention(module.attn, windows)
            count += 1
    return count
