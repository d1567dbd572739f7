"""Attention of a tower on a CPU in pieces of its queries, so that a computation in slices may stop between them.

All patches of an image see each other in one operation, the only one that grows with the square of their number: it
takes as long as many steps for an image of a megapixel, and minutes for sixteen. What comes out is the same to the bit.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

PIECE_OPERATIONS = 1e10
"""Of a piece at most: some hundredths of a second. Smaller ones cost more (`python -m bench.tower`)."""
MULTIPLE = 64
"""Of queries in a piece: torch deals them out in blocks that divide this."""


class InPieces(TorchFunctionMode):
    """Inside, `between` is called between two pieces of one attention."""

    def __init__(self, between: Callable[[], None]) -> None:
        super().__init__()
        self._between = between

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See `TorchFunctionMode`."""
        options = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention or len(args) != 3 or options.get("is_causal"):
            return func(*args, **options)
        return self._attend(*args, options)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: dict[str, Any]) -> Any:
        number, mask = query.shape[-2], options.pop("attn_mask", None)
        size = piece_of(query, key)
        if size >= number:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)
        found = []
        for first in range(0, number, size):
            if first:
                self._between()
            part = mask[..., first : first + size, :] if mask is not None and mask.shape[-2] == number else mask
            asked = query[..., first : first + size, :]
            found.append(F.scaled_dot_product_attention(asked, key, value, attn_mask=part, **options))
        return torch.cat(found, dim=-2)


def piece_of(query: torch.Tensor, key: torch.Tensor) -> int:
    """How many queries make a piece."""
    operations = 4 * query.shape[:-2].numel() * key.shape[-2] * query.shape[-1]  # of one query
    return max(MULTIPLE, int(PIECE_OPERATIONS / max(operations, 1)) // MULTIPLE * MULTIPLE)
