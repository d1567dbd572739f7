"""Paged attention for CPUs: decoding rows and short prompts in a C kernel, long prompts in SDPA.

The kernel takes one query at a time, straight from the blocks; a short prompt is handed to it as so many queries, which
costs less than the dozen torch operations of each prompt. A long prompt is worth gathering its blocks for: SDPA then
takes all its queries at once, those of a KV head's group packed as rows. Without a C compiler, `cpu_torch` decodes.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from engine.attention.cpu_torch import TorchDecode, softcapped
from engine.attention.reference import visible
from engine.forward_batch import ForwardBatch
from engine.kernels.cpu import CpuKernels
from engine.kv_cache import LayerCache

SCORES_LIMIT = 1 << 24
"""Most attention scores held at once for a chunk of a prompt (64 MiB in fp32)."""
SHORT_PROMPT_SCORES = 1 << 13
"""Prompts with at most this many pairs of query and key go to the kernel."""


@dataclass(frozen=True, slots=True)
class _Queries:
    """Consecutive tokens that the kernel takes one by one."""

    tokens: slice
    tables: torch.Tensor
    """int32 [n, max_blocks]"""
    lens: torch.Tensor
    """int32 [n]: keys that each query sees, before any window."""


@dataclass(frozen=True, slots=True)
class _Prompt:
    """Consecutive tokens of one sequence, its newest, that SDPA takes together."""

    tokens: slice
    blocks: torch.Tensor
    """int64 [num_blocks]"""
    context_len: int
    masks: dict[tuple[int, int, int, int | None], torch.Tensor] = field(default_factory=dict)
    """By first query, number of queries, group and window: what the layers of a step share."""


class CpuAttention:
    """See the module's docstring. Caches hold the model's dtype; sums and softmax are in fp32.

    `kernels` serve heads up to `MAX_HEAD_DIM` wide; for wider ones pass None.
    """

    def __init__(self, block_size: int, kernels: CpuKernels | None) -> None:
        self._block_size = block_size
        self._kernels = kernels
        self._torch_decode = TorchDecode(block_size)

    def plan(self, batch: ForwardBatch) -> None:
        """See `AttentionBackend.plan`."""
        self._batch = batch
        self._parts: list[_Queries | _Prompt] = []
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
                self._parts.append(self._plan_prompt(row, slice(starts[row], starts[end])))
            row = end
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

    def _plan_prompt(self, row: int, tokens: slice) -> _Prompt:
        context_len = self._batch.context_lens[row]
        num_blocks = -(-context_len // self._block_size)
        return _Prompt(tokens, self._batch.block_tables[row, :num_blocks].long(), context_len)

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

    def _attend(
        self, q: torch.Tensor, cache: LayerCache, scaling: float, softcap: float | None, window: int | None
    ) -> torch.Tensor:
        """q `[H, T, Dk]` over what the cache holds now; returns `[T, H, Dv]`."""
        outputs = []
        for part in self._parts:
            queries = q[:, part.tokens]
            if isinstance(part, _Prompt):
                outputs.append(self._prompt(queries, part, cache, scaling, softcap, window))
            elif self._kernels is None:
                outputs.append(self._torch_decode.run(queries, cache, scaling, softcap, window))
            else:
                outputs.append(
                    self._kernels.paged_decode(
                        queries.transpose(0, 1), cache.k, cache.v, part.tables, part.lens,
                        block_size=self._block_size, scaling=scaling, softcap=softcap, window=window,
                    )
                )  # fmt: skip
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _prompt(
        self,
        q: torch.Tensor,
        part: _Prompt,
        cache: LayerCache,
        scaling: float,
        softcap: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """q `[H, n, Dk]`; returns `[n, H, Dv]`."""
        heads, query_len, _ = q.shape
        keys, values = self._gather(cache.k, part), self._gather(cache.v, part)
        chunk = max(1, SCORES_LIMIT // (heads * part.context_len))
        outputs = []
        for start in range(0, query_len, chunk):
            queries = q[:, start : start + chunk]
            mask = self._mask(part, start, queries, heads // len(keys), window)
            num_keys = mask.shape[1]
            packed = queries.reshape(1, len(keys), -1, q.shape[2])
            k, v = keys[:, :num_keys].unsqueeze(0), values[:, :num_keys].unsqueeze(0)
            if softcap:
                output = softcapped(packed, k, v, mask, scaling, softcap)
            else:
                output = F.scaled_dot_product_attention(packed, k, v, attn_mask=mask, scale=scaling)
            outputs.append(output.view(heads, queries.shape[1], -1))
        return torch.cat(outputs, dim=1).transpose(0, 1)

    def _gather(self, cache: torch.Tensor, part: _Prompt) -> torch.Tensor:
        """The sequence's keys or values, `[KV, context_len, D]`."""
        heads, _, dim = cache.shape
        blocks = cache.view(heads, -1, self._block_size * dim).index_select(1, part.blocks)
        return blocks.view(heads, -1, dim)[:, : part.context_len]

    def _mask(self, part: _Prompt, start: int, queries: torch.Tensor, group: int, window: int | None) -> torch.Tensor:
        """Added to the scores of the packed queries: `[group * n, num_keys]` in their dtype; once a step."""
        key = (start, queries.shape[1], group, window)
        if key not in part.masks:
            num_tokens = part.tokens.stop - part.tokens.start
            first = part.context_len - num_tokens + start
            last = first + queries.shape[1]
            shown = visible(torch.arange(first, last), torch.arange(last), window)
            mask = torch.zeros(shown.shape, dtype=queries.dtype).masked_fill_(~shown, float("-inf"))
            part.masks[key] = mask.repeat(group, 1)
        return part.masks[key]
