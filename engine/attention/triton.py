"""Paged attention for CUDA in Triton kernels."""

import itertools
from dataclasses import dataclass, field

import torch

from engine.attention.long_prompts import SHORTEST, LongPrompt, LongPrompts
from engine.attention.spans import SpanAttention
from engine.device.forward_batch import ForwardBatch
from engine.device.kv_cache import LayerCache
from engine.kernels.reference import HeadNorms, less_offset, saturate
from engine.kernels.triton_attention import layout_for, paged_attention
from engine.kernels.triton_layer import rotate_write
from engine.kernels.triton_pieces import Pieces, cut

INTERPRETED_PROCESSORS = 4


@dataclass(frozen=True, slots=True)
class _Run:
    """Rows of a step that follow each other and are attended with in one launch."""

    rows: slice
    tokens: slice
    lens: torch.Tensor
    """int32 [rows]: their contexts."""
    query_starts: torch.Tensor
    """int32 [rows + 1], from the first of the tokens on."""
    longest: int
    """Most queries of a row."""
    pieces: dict[tuple[object, ...], Pieces] = field(default_factory=dict)
    """By what layers differ in, as they are dealt out. Shared by the layers of a kind."""

    def cut(self, q: torch.Tensor, cache: LayerCache, window: int | None, num_processors: int) -> Pieces:
        """The pieces of a launch with q `[H, T, D]`."""
        kind = q.shape[0], cache.k.shape[0], cache.k.shape[2], cache.k.dtype, cache.is_latent, window
        found = self.pieces.get(kind)
        if found is None:
            layout = layout_for(
                q, cache, num_seqs=len(self.lens), max_query_len=self.longest, num_processors=num_processors
            )
            found = self.pieces[kind] = cut(self.lens, self.query_starts, layout, window=window)
        return found


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
        self._long: list[tuple[LongPrompt, _Run]] = []
        self._runs: list[_Run] = []

    def plan(self, batch: ForwardBatch) -> None:
        """See `AttentionBackend.plan`."""
        self._batch = batch
        self._long, self._runs = [], []
        self._spans.plan(batch)
        if batch.mixture is not None:
            # The first launch writes to tokens that do not decode as well; the second writes all of those anew.
            rows, prompts = len(batch.query_lens), batch.mixture.prompt_starts
            self._runs = [
                _Run(slice(rows), slice(rows), batch.mixture.decode_lens, prompts, 1),
                _Run(slice(rows), slice(None), batch.seqlens_k, prompts, max(batch.query_lens)),
            ]
            return
        starts = [0, *itertools.accumulate(batch.query_lens)]
        first = batch.num_decodes
        self._add_run(starts, 0, first)
        for row in range(first, len(batch.query_lens)):
            if self._is_long(row):
                tokens = slice(starts[row], starts[row + 1])
                self._add_run(starts, first, row)
                prompt = self.long_prompts.find(batch.block_tables[row], tokens)
                self._long.append((prompt, self._run_of(starts, row, row + 1)))
                first = row + 1
        self._add_run(starts, first, len(batch.query_lens))

    def _is_long(self, row: int) -> bool:
        """Whether a row is a prompt from its first token on that is better served apart."""
        tokens = self._batch.query_lens[row]
        return tokens == self._batch.context_lens[row] and SHORTEST <= tokens <= self.long_prompts.longest

    def _add_run(self, starts: list[int], first: int, stop: int) -> None:
        if any(self._batch.query_lens[first:stop]):
            self._runs.append(self._run_of(starts, first, stop))

    def _run_of(self, starts: list[int], first: int, stop: int) -> _Run:
        batch, token = self._batch, starts[first]
        query_starts = batch.query_starts[first : stop + 1]
        return _Run(
            slice(first, stop), slice(token, starts[stop]), batch.seqlens_k[first:stop],
            query_starts - token if token else query_starts, max(batch.query_lens[first:stop]),
        )  # fmt: skip

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
        return self._attend(q.transpose(0, 1), cache, scaling, softcap, window).view(len(qkv), -1)

    def _attend(
        self, q: torch.Tensor, cache: LayerCache, scaling: float, softcap: float | None, window: int | None
    ) -> torch.Tensor:
        """Decoding rows and prompts in a launch each, since they want other tiles."""
        out = torch.empty(q.shape[1], q.shape[0], cache.v.shape[2], dtype=q.dtype, device=q.device)

        def attend(run: _Run) -> None:
            queries = q[:, run.tokens]
            pieces = run.cut(queries, cache, window, self._num_processors)
            paged_attention(
                queries, cache, self._batch.block_tables[run.rows], pieces, block_size=self._block_size,
                scaling=scaling, softcap=softcap, window=window, out=out[run.tokens],
            )  # fmt: skip

        for run in self._runs:
            attend(run)
        hides = softcap is not None or cache.k.dtype != q.dtype or cache.k.shape[2] != cache.v.shape[2]
        for prompt, run in self._long:
            if hides or (window is not None and window < prompt.num_tokens):
                attend(run)
            else:
                self.long_prompts.run(prompt, q, cache, scaling, out)
        return self._spans.replace(out, q, cache, scaling, softcap, window)


def _write(cache: torch.Tensor, slots: torch.Tensor, new: torch.Tensor) -> None:
    """Put new `[KV, T, D]` into the slots int64 `[T]` of a layer's keys or values."""
    if cache.dtype == torch.float8_e4m3fn:  # as bytes, since index_copy_ does not know the dtype
        new, cache = saturate(new, cache.dtype).contiguous().view(torch.uint8), cache.view(torch.uint8)
    cache.index_copy_(1, slots, new)
