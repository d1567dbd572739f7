"""Attention in both directions among the tokens of an image, for families that have it (Gemma 3).

Such an image is computed in one step, so its keys are all in the cache when its queries attend. Backends attend
causally as ever; what came out for these queries is then replaced, whatever the backend and its device.
"""

from dataclasses import dataclass, field

import torch

from engine.attention.reference import gather_slots
from engine.device.forward_batch import ForwardBatch
from engine.device.kv_cache import LayerCache


@dataclass(frozen=True, slots=True)
class _Span:
    tokens: slice
    """Of the step, those of one image."""
    slots: torch.Tensor
    """int64: where the keys of its sequence are, to the end of the image."""
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)
    """By window, bool [tokens, keys]: what they see. Shared by the layers of a step."""

    def mask(self, window: int | None) -> torch.Tensor:
        """Everything up to the end of the image, but for what a window leaves behind."""
        if window not in self.masks:
            keys = torch.arange(len(self.slots), device=self.slots.device)
            queries = keys[len(self.slots) - (self.tokens.stop - self.tokens.start) :]
            distance = queries[:, None] - keys[None, :]
            self.masks[window] = distance < (window or len(self.slots))
        return self.masks[window]


class SpanAttention:
    """Plan once a step, replace once a layer."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._spans: list[_Span] = []

    @property
    def is_needed(self) -> bool:
        """Whether the step has images that are seen in both directions."""
        return bool(self._spans)

    def plan(self, batch: ForwardBatch) -> None:
        """Find the keys of each image."""
        self._spans = [
            _Span(
                slice(span.token, span.token + span.length),
                gather_slots(batch.block_tables[span.row], span.start + span.length, self._block_size),
            )
            for span in batch.spans
        ]

    def replace(
        self,
        out: torch.Tensor,
        q: torch.Tensor,
        cache: LayerCache,
        scaling: float,
        softcap: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """q `[H, T, Dk]`; `out` `[T, H, Dv]`, in which the rows of images are written anew, and which is returned."""
        for span in self._spans:
            keys, values = _taken(cache.k, span.slots), _taken(cache.v, span.slots)
            queries = q[:, span.tokens].float()
            packed = queries.reshape(len(keys), -1, queries.shape[2])
            scores = torch.matmul(packed, keys.transpose(1, 2)) * scaling
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            hidden = ~span.mask(window).repeat(len(queries) // len(keys), 1)
            attended = scores.masked_fill_(hidden, float("-inf")).softmax(-1) @ values
            out[span.tokens] = attended.view(*queries.shape[:2], -1).transpose(0, 1).to(out.dtype)
        return out


def _taken(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """fp32 `[KV, keys, D]`."""
    if cache.dtype == torch.float8_e4m3fn:  # not every device indexes the dtype itself
        return cache.view(torch.uint8).index_select(1, slots).view(cache.dtype).float()
    return cache.index_select(1, slots).float()
