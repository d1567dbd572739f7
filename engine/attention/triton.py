"""Paged attention for CUDA in Triton kernels."""

import torch

from engine.device.forward_batch import ForwardBatch
from engine.device.kv_cache import LayerCache
from engine.kernels.reference import HeadNorms, less_offset, saturate
from engine.kernels.triton_attention import choose_splits, paged_attention
from engine.kernels.triton_layer import rotate_write

INTERPRETED_PROCESSORS = 4


class TritonAttention:
    """See `engine.kernels.triton_attention`. Caches hold the model's dtype or e4m3; sums and softmax are in fp32."""

    capturable = True
    serves_layers = "cuda"

    def __init__(self, block_size: int, device: torch.device) -> None:
        self._block_size = block_size
        is_cuda = device.type == "cuda"
        self._num_processors = (
            torch.cuda.get_device_properties(device).multi_processor_count if is_cuda else INTERPRETED_PROCESSORS
        )

    def plan(self, batch: ForwardBatch) -> None:
        """See `AttentionBackend.plan`."""
        self._batch = batch
        decodes, rows = batch.num_decodes, len(batch.query_lens)
        self._num_decodes = decodes
        self._decode_context = max(batch.context_lens[:decodes], default=0)
        self._max_query_len = max(batch.query_lens[decodes:], default=0)
        if 0 < decodes < rows:
            self._prompt_starts = batch.query_starts[decodes:] - decodes
        else:
            self._prompt_starts = batch.query_starts

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
        _write(cache.k, self._batch.slot_mapping, less_offset(k, cache.key_offset))
        _write(cache.v, self._batch.slot_mapping, v)
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
        softcap: float | None = None,
        window: int | None = None,
        norms: HeadNorms | None = None,
    ) -> torch.Tensor:
        """Rotary embedding, write and attention of packed rows q|k|v `[T, (H + 2 * KV) * D]`; returns `[T, H * D]`.

        cos and sin `[T, R]`, contiguous. With `norms` the heads of queries and keys are normed first.
        """
        q = rotate_write(
            qkv, cos, sin, self._batch.slot_mapping, cache.k, cache.v, heads=heads, norms=norms,
            key_offset=cache.key_offset,
        )  # fmt: skip
        return self._attend(q.transpose(0, 1), cache, scaling, softcap, window).flatten(1)

    def _attend(
        self, q: torch.Tensor, cache: LayerCache, scaling: float, softcap: float | None, window: int | None
    ) -> torch.Tensor:
        """Decoding rows and prompts in a launch each: they want other tiles, and the first want their keys split."""
        batch, decodes = self._batch, self._num_decodes
        out = torch.empty(q.shape[1], q.shape[0], cache.v.shape[2], dtype=q.dtype, device=q.device)

        def attend(tokens: slice, rows: slice, starts: torch.Tensor, max_query_len: int, splits: int) -> None:
            paged_attention(
                q[:, tokens], cache.k, cache.v, batch.block_tables[rows], batch.seqlens_k[rows], starts,
                block_size=self._block_size, scaling=scaling, softcap=softcap, window=window,
                max_query_len=max_query_len, splits=splits, out=out[tokens],
            )  # fmt: skip

        if decodes:
            longest = min(self._decode_context, window or self._decode_context)
            splits = choose_splits(decodes, cache.k.shape[0], longest, self._num_processors)
            attend(slice(decodes), slice(decodes), batch.query_starts[: decodes + 1], 1, splits)
        if self._max_query_len:
            attend(slice(decodes, None), slice(decodes, None), self._prompt_starts, self._max_query_len, 1)
        return out


def _write(cache: torch.Tensor, slots: torch.Tensor, new: torch.Tensor) -> None:
    """Put new `[KV, T, D]` into the slots int64 `[T]` of a layer's keys or values."""
    if cache.dtype == torch.float8_e4m3fn:  # as bytes, since index_copy_ does not know the dtype
        new, cache = saturate(new, cache.dtype).contiguous().view(torch.uint8), cache.view(torch.uint8)
    cache.index_copy_(1, slots, new)
