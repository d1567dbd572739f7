"""Paged attention for CUDA in Triton kernels."""

import itertools
from dataclasses import dataclass

import torch

from engine.attention.long_prompts import SHORTEST, LongPrompt, LongPrompts
from engine.attention.spans import SpanAttention
from engine.device.forward_batch import ForwardBatch
from engine.device.kv_cache import LayerCache
from engine.kernels.reference import HeadNorms, less_offset, saturate
from engine.kernels.triton_attention import choose_splits, decoding_parts, paged_attention
from engine.kernels.triton_layer import rotate_write

INTERPRETED_PROCESSORS = 4


@dataclass(frozen=True, slots=True)
class _Run:
    """Rows of a step that follow each other and are attended with in one launch."""

    rows: slice
    tokens: slice
    query_starts: torch.Tensor
    """int32 [rows + 1], from the first of the tokens on."""
    longest: int


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
        self.long_prompts = LongPrompts(block_size, device)
        self._spans = SpanAttention(block_size)
        self._long: list[LongPrompt] = []
        self._runs: list[_Run] = []

    def plan(self, batch: ForwardBatch) -> None:
        """See `AttentionBackend.plan`."""
        self._batch = batch
        self._num_decodes = decodes = batch.num_decodes
        self._decode_context = max(batch.context_lens[:decodes], default=0)
        self._long, self._runs = [], []
        self._spans.plan(batch)
        if batch.mixture is not None:
            return
        starts = [0, *itertools.accumulate(batch.query_lens)]
        first = decodes
        for row in range(decodes, len(batch.query_lens)):
            if self._is_long(batch, row):
                tokens = slice(starts[row], starts[row + 1])
                self._long.append(self.long_prompts.find(row, batch.block_tables[row], tokens))
                self._add_run(batch, starts, first, row)
                first = row + 1
        self._add_run(batch, starts, first, len(batch.query_lens))

    def _is_long(self, batch: ForwardBatch, row: int) -> bool:
        """Whether a row is a prompt from its first token on that is better served apart."""
        tokens = batch.query_lens[row]
        return tokens == batch.context_lens[row] and SHORTEST <= tokens <= self.long_prompts.longest

    def _add_run(self, batch: ForwardBatch, starts: list[int], first: int, stop: int) -> None:
        longest = max(batch.query_lens[first:stop], default=0)
        if longest:
            token = starts[first]
            query_starts = batch.query_starts[first : stop + 1] - token if token else batch.query_starts[: stop + 1]
            self._runs.append(_Run(slice(first, stop), slice(token, starts[stop]), query_starts, longest))

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
        if not cache.is_latent:
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
        batch, decodes, mixture = self._batch, self._num_decodes, self._batch.mixture
        out = torch.empty(q.shape[1], q.shape[0], cache.v.shape[2], dtype=q.dtype, device=q.device)

        def attend(
            tokens: slice, rows: slice, lens: torch.Tensor, starts: torch.Tensor, max_query_len: int, splits: int
        ) -> None:
            paged_attention(
                q[:, tokens], cache, batch.block_tables[rows], lens[rows], starts,
                block_size=self._block_size, scaling=scaling, softcap=softcap, window=window,
                max_query_len=max_query_len, splits=splits, out=out[tokens],
            )  # fmt: skip

        def splits(rows: int, context: int) -> int:
            longest = min(context, window or context)
            return choose_splits(rows, decoding_parts(q.shape[0], cache), longest, self._num_processors)

        if mixture is not None:
            # The first launch writes to tokens that do not decode as well; the second writes all of those anew.
            rows, everything = len(batch.query_lens), slice(None)
            parts = splits(rows, max(batch.context_lens))
            attend(slice(rows), everything, mixture.decode_lens, mixture.prompt_starts, 1, parts)
            longest = max(batch.query_lens)
            attend(everything, everything, batch.seqlens_k, mixture.prompt_starts, longest, 1)
            return out
        if decodes:
            parts = splits(decodes, self._decode_context)
            attend(slice(decodes), slice(decodes), batch.seqlens_k, batch.query_starts[: decodes + 1], 1, parts)
        hides = softcap is not None or cache.k.dtype != q.dtype or cache.k.shape[2] != cache.v.shape[2]
        for prompt in self._long:
            if hides or (window is not None and window < prompt.num_tokens):
                starts = torch.tensor([0, prompt.num_tokens], dtype=torch.int32, device=q.device)
                row = slice(prompt.row, prompt.row + 1)
                attend(prompt.tokens, row, batch.seqlens_k, starts, prompt.num_tokens, 1)
            else:
                self.long_prompts.run(prompt, q, cache, scaling, out)
        for run in self._runs:
            attend(run.tokens, run.rows, batch.seqlens_k, run.query_starts, run.longest, 1)
        return self._spans.replace(out, q, cache, scaling, softcap, window)


def _write(cache: torch.Tensor, slots: torch.Tensor, new: torch.Tensor) -> None:
    """Put new `[KV, T, D]` into the slots int64 `[T]` of a layer's keys or values."""
    if cache.dtype == torch.float8_e4m3fn:  # as bytes, since index_copy_ does not know the dtype
        new, cache = saturate(new, cache.dtype).contiguous().view(torch.uint8), cache.view(torch.uint8)
    cache.index_copy_(1, slots, new)
