"""Paged attention written to be obviously right: one sequence, one plain softmax in fp32 at a time."""

import torch

from engine.device.forward_batch import ForwardBatch
from engine.device.kv_cache import LayerCache
from engine.kernels.reference import less_offset, saturate


def gather_slots(block_table: torch.Tensor, context_len: int, block_size: int) -> torch.Tensor:
    """Slots of the first `context_len` tokens of a sequence, int64 `[context_len]`."""
    positions = torch.arange(context_len, device=block_table.device)
    return block_table.long()[positions // block_size] * block_size + positions % block_size


def visible(query_positions: torch.Tensor, key_positions: torch.Tensor, window: int | None) -> torch.Tensor:
    """bool `[queries, keys]`: causal, and within the sliding window if there is one."""
    distance = query_positions[:, None] - key_positions[None, :]
    mask = distance >= 0
    return mask & (distance < window) if window else mask


class ReferenceAttention:
    """The oracle of the other backends."""

    capturable = False
    serves_layers = ""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._batch: ForwardBatch | None = None

    def plan(self, batch: ForwardBatch) -> None:
        """See `AttentionBackend.plan`."""
        self._batch = batch

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cache: LayerCache,
        *,
        scaling: float,
        softcap: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """See `AttentionBackend.run`."""
        batch = self._batch
        assert batch is not None
        cache.k[:, batch.slot_mapping] = saturate(less_offset(k, cache.key_offset), cache.k.dtype)
        if not cache.is_latent:
            cache.v[:, batch.slot_mapping] = saturate(v, cache.v.dtype)
        group = q.shape[0] // k.shape[0]
        outputs, start = [], 0
        for row, (query_len, context_len) in enumerate(zip(batch.query_lens, batch.context_lens, strict=True)):
            slots = gather_slots(batch.block_tables[row], context_len, self._block_size)
            keys = cache.k[:, slots].float().repeat_interleave(group, dim=0)
            values = cache.v[:, slots].float().repeat_interleave(group, dim=0)
            scores = q[:, start : start + query_len].float() @ keys.transpose(1, 2) * scaling
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            positions = torch.arange(context_len, device=q.device)
            shown = visible(positions[-query_len:], positions, window)
            for span in batch.spans:
                if span.row == row:
                    begin, image = span.start - (context_len - query_len), slice(span.start, span.start + span.length)
                    inside = positions[image, None] - positions[None, image] < (window or context_len)
                    shown[begin : begin + span.length, image] = inside
            scores.masked_fill_(~shown, float("-inf"))
            outputs.append((scores.softmax(-1) @ values).to(q.dtype))
            start += query_len
        return torch.cat(outputs, dim=1).transpose(0, 1)
