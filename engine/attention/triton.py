"""Paged attention for CUDA in Triton kernels."""

import torch

from engine.forward_batch import ForwardBatch
from engine.kernels.triton_attention import choose_splits, paged_attention
from engine.kernels.triton_layer import rotate_write
from engine.kv_cache import LayerCache

INTERPRETED_PROCESSORS = 4


class TritonAttention:
    """See `engine.kernels.triton_attention`. Caches hold the model's dtype; sums and softmax are in fp32."""

    def __init__(self, block_size: int, device: torch.device) -> None:
        self._block_size = block_size
        is_cuda = device.type == "cuda"
        self._num_processors = (
            torch.cuda.get_device_properties(device).multi_processor_count if is_cuda else INTERPRETED_PROCESSORS
        )

    def plan(self, batch: ForwardBatch) -> None:
        """See `AttentionBackend.plan`."""
        self._batch = batch
        self._max_query_len = max(batch.query_lens)
        self._max_context = max(batch.context_lens)

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
        cache.k.index_copy_(1, self._batch.slot_mapping, k)
        cache.v.index_copy_(1, self._batch.slot_mapping, v)
        return self._attend(q if q.stride(2) == 1 else q.contiguous(), cache, scaling, softcap, window)

    def run_packed(
        self,
        qkv: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        cache: LayerCache,
        *,
        heads: int,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """Rotary embedding, write and attention of packed rows q|k|v `[T, (H + 2 * KV) * D]`; returns `[T, H * D]`.

        cos and sin `[T, D]`, contiguous.
        """
        q = rotate_write(qkv, cos, sin, self._batch.slot_mapping, cache.k, cache.v, heads=heads)
        return self._attend(q.transpose(0, 1), cache, scaling, None, window).flatten(1)

    def _attend(
        self, q: torch.Tensor, cache: LayerCache, scaling: float, softcap: float | None, window: int | None
    ) -> torch.Tensor:
        batch = self._batch
        splits = 1
        if self._max_query_len == 1:
            longest = min(self._max_context, window or self._max_context)
            splits = choose_splits(len(batch.query_lens), cache.k.shape[0], longest, self._num_processors)
        return paged_attention(
            q, cache.k, cache.v, batch.block_tables, batch.seqlens_k, batch.query_starts, block_size=self._block_size,
            scaling=scaling, softcap=softcap, window=window, max_query_len=self._max_query_len, splits=splits,
        )  # fmt: skip
