"""What the keys of a layer have in common, taken off before they are rounded to FP8.

A query's scores with all keys lose the same number when the same vector is taken off each key, and softmax does not see
that. So a cache may hold keys less any vector, and e4m3, whose errors are a share of the number, rounds what is left
with less of an error. In models whose keys have a large bias (Qwen 2.5: 359 in its first layer) the errors of what all
keys share would drown what tells them apart.

The vector is the mean of a layer's keys over a text, at positions all over the context: dimensions that turn fast have
a mean of nothing and are left alone. SageAttention takes off such a mean anew for each batch (Zhang et al.,
arXiv 2410.02367, section 4.2); a cache that many requests share needs one for good.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface

from engine.models.sample import read_sample

_NAME = "headrace-keys"


class _Means:
    def __init__(self) -> None:
        self.sums: dict[int, torch.Tensor] = {}
        self.counts: dict[int, int] = {}

    def attend(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **options: Any
    ) -> tuple[torch.Tensor, None]:
        """transformers' attention function: note the keys `[1, KV, T, D]`, then attend causally."""
        layer = module.layer_idx
        self.sums[layer] = self.sums.get(layer, 0.0) + key[0].float().sum(dim=1)
        self.counts[layer] = self.counts.get(layer, 0) + key.shape[2]
        group = query.shape[1] // key.shape[1]
        attended = torch.nn.functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(group, dim=1),
            value.repeat_interleave(group, dim=1),
            is_causal=True,
            scale=options.get("scaling"),
        )
        return attended.transpose(1, 2), None


def key_offsets(model: Any, directory: Path, context: int) -> dict[int, torch.Tensor]:
    """fp32 `[KV, D]` by layer; none where the directory has no tokenizer.json.

    Not for layers that cap their scores: a cap sees what softmax does not.
    """
    means = _Means()
    AttentionInterface.register(_NAME, means.attend)
    read_sample(model, directory, _NAME, context)
    return {layer: found / means.counts[layer] for layer, found in means.sums.items()}
