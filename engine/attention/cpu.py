"""Paged attention for CPUs: kernels in C, and SDPA for what they do not take.

One kernel takes one query at a time, straight from the blocks; short prompts are handed to it as so many queries, all
at once. Another takes the queries of a long prompt in tiles. In bf16, or for sizes it does not know, a long prompt's
blocks are gathered and SDPA takes its queries, those of a KV head's group packed as rows. Without a C compiler,
`cpu_torch` decodes.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from engine.attention.cpu_torch import TorchDecode
from engine.attention.sdpa import Run, attend_in_chunks, plan_run
from engine.attention.spans import SpanAttention
from engine.device.forward_batch import ForwardBatch
from engine.device.kv_cache import LayerCache
from engine.kernels.cpu import CpuKernels
from engine.kernels.cpu_layer import MAX_ROWS, LayerStep, QuantizedLayer, Stretch

SHORT_PROMPT_SCORES = 1 << 13
"""Prompts with at most this many pairs of query and key go to the kernel for single queries."""


@dataclass(frozen=True, slots=True)
class _Queries:
    """Consecutive tokens that the kernel takes one by one."""

    tokens: slice
    tables: torch.Tensor
    """int32 [n, max_blocks]"""
    lens: torch.Tensor
    """int32 [n]: keys that each query sees, before any window."""

    @property
    def stretch(self) -> Stretch:
        """As a layer in one call wants it."""
        return Stretch(self.tokens, self.tables, self.lens)


@dataclass(frozen=True)
class _Prompt:
    """Consecutive tokens of one sequence, a row of the batch, that are attended with together."""

    batch: ForwardBatch
    row: int
    tokens: slice
    block_size: int

    @property
    def table(self) -> torch.Tensor:
        """int32 [max_blocks]"""
        return self.batch.block_tables[self.row]

    @property
    def context_len(self) -> int:
        """Tokens of the sequence, those here included."""
        return self.batch.context_lens[self.row]

    @property
    def stretch(self) -> Stretch:
        """As a layer in one call wants it."""
        return Stretch(self.tokens, self.table, None, self.context_len)

    @cached_property
    def run(self) -> Run:
        """What SDPA's path wants of it."""
        return plan_run(self.batch, self.row, self.tokens.start, self.block_size)


class CpuAttention:
    """See the module's docstring. Caches hold the model's dtype; sums and softmax are in fp32.

    `kernels` serve heads up to `MAX_QUERY_DIM` wide; for wider ones pass None.
    """

    capturable = False
    serves_layers = "cpu"

    def __init__(self, block_size: int, kernels: CpuKernels | None) -> None:
        self._block_size = block_size
        self._kernels = kernels
        self._torch_decode = TorchDecode(block_size)
        self._spans = SpanAttention(block_size)

    def plan(self, batch: ForwardBatch) -> None:
        """See `AttentionBackend.plan`."""
        self._batch = batch
        self._spans.plan(batch)
        self._parts: list[_Queries | _Prompt] = []
        self._layer_step: LayerStep | None = None
        starts = np.cumsum([0, *batch.query_lens]).tolist()
        row, num_rows = 0, len(batch.query_lens)
        while row < num_rows:
            end = row
            while end < num_rows and self._is_short(end):
                end += 1
            if end > row:
                self._parts.append(self._plan_queries(row, end, slice(starts[row], starts[end])))
            else:
                end = row + 1
                self._parts.append(_Prompt(batch, row, slice(starts[row], starts[end]), self._block_size))
            row = end
        self._has_prompts = any(isinstance(part, _Prompt) for part in self._parts)
        if self._kernels is None:
            self._torch_decode.plan(batch)

    def _is_short(self, row: int) -> bool:
        if row < self._batch.num_decodes:
            return True
        scores = self._batch.query_lens[row] * self._batch.context_lens[row]
        return self._kernels is not None and scores <= SHORT_PROMPT_SCORES

    def _plan_queries(self, first: int, last: int, tokens: slice) -> _Queries:
        batch = self._batch
        if last <= batch.num_decodes:
            return _Queries(tokens, batch.block_tables[first:last], batch.seqlens_k[first:last])
        query_lens = batch.query_lens[first:last]
        lens = [np.arange(c - n, c) + 1 for n, c in zip(query_lens, batch.context_lens[first:last], strict=True)]
        tables = batch.block_tables[first:last].repeat_interleave(torch.tensor(query_lens), dim=0)
        return _Queries(tokens, tables, torch.from_numpy(np.concatenate(lens).astype(np.int32)))

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
        if not cache.is_latent:
            cache.v.index_copy_(1, self._batch.slot_mapping, v)
        return self._attend(q, cache, scaling, softcap, window)

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

        cos and sin are fp32 `[T, D]`. qkv is overwritten. Needs the C kernels.
        """
        assert self._kernels is not None
        self._kernels.rope_and_write(qkv, cos, sin, self._batch.slot_mapping, cache.k, cache.v, heads)
        q = qkv[:, : heads * cos.shape[1]].view(len(qkv), heads, -1).transpose(0, 1)
        return self._attend(q, cache, scaling, None, window).flatten(1)

    def run_layer(
        self, layer: QuantizedLayer, residual: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: LayerCache
    ) -> bool:
        """Do a whole layer at once, if it takes the step; whether it did.

        residual fp32 `[T, dim]` is changed; cos and sin are fp32 `[T, D]`, the same in all layers.
        """
        if len(residual) > MAX_ROWS or self._spans.is_needed or (self._has_prompts and not layer.takes_prompts):
            return False
        if self._layer_step is None:
            parts = sorted(self._parts, key=lambda part: isinstance(part, _Queries))
            self._layer_step = LayerStep(
                cos, sin, self._batch.slot_mapping, [part.stretch for part in parts], num_slots=cache.k.shape[1],
                block_size=self._block_size,
            )  # fmt: skip
        layer(residual, self._layer_step, cache.k, cache.v)
        return True

    def _attend(
        self, q: torch.Tensor, cache: LayerCache, scaling: float, softcap: float | None, window: int | None
    ) -> torch.Tensor:
        """q `[H, T, Dk]` over what the cache holds now; returns `[T, H, Dv]`."""
        outputs = []
        for part in self._parts:
            queries = q[:, part.tokens]
            if isinstance(part, _Prompt):
                outputs.append(self._attend_prompt(queries, part, cache, scaling, softcap, window))
            elif self._kernels is None:
                outputs.append(self._torch_decode.run(queries, cache, scaling, softcap, window))
            else:
                outputs.append(
                    self._kernels.paged_decode(
                        queries.transpose(0, 1), cache.k, cache.v, part.tables, part.lens,
                        block_size=self._block_size, scaling=scaling, softcap=softcap, window=window,
                    )
                )  # fmt: skip
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return self._spans.replace(out, q, cache, scaling, softcap, window)

    def _attend_prompt(
        self,
        q: torch.Tensor,
        prompt: _Prompt,
        cache: LayerCache,
        scaling: float,
        softcap: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """q `[H, n, Dk]` of one sequence; returns `[n, H, Dv]`."""
        if self._kernels is not None and self._kernels.takes_prompts(len(q), cache.k, cache.v):
            return self._kernels.attend_prompt(
                q.transpose(0, 1), cache.k, cache.v, prompt.table, block_size=self._block_size,
                context_len=prompt.context_len, scaling=scaling, softcap=softcap, window=window,
            )  # fmt: skip
        keys, values = prompt.run.gather(cache)
        return attend_in_chunks(q, keys, values, prompt.run, scaling, softcap, window)
