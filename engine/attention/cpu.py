"""Paged attention for CPUs: one-token queries in a C kernel, or in plain torch where there is none; prompts in SDPA.

In plain torch one-token queries never go through SDPA, whose bf16 path takes 5 to 30 times as long for them: the query
heads of a KV head are packed as rows, and matmul, softmax, matmul run over all sequences of about equal length at once.
Blocks are gathered head-major, so that neither product needs a copy of its own. Prompts go through SDPA one sequence at
a time, unless softcap rules it out.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from engine.attention.reference import visible
from engine.forward_batch import ForwardBatch
from engine.kernels.cpu import CpuKernels
from engine.kv_cache import LayerCache

SCORES_LIMIT = 1 << 24
"""Most attention scores held at once for a chunk of a prompt (64 MiB in fp32)."""
LENGTH_RATIO = 2.0
"""Decoding sequences share one padded product while the longest is at most this many times the shortest."""


@dataclass(frozen=True, slots=True)
class _DecodeGroup:
    """Decoding sequences of about equal length, padded to the longest."""

    rows: slice
    """Which of the length-sorted decoding sequences."""
    blocks: torch.Tensor
    """int64 [rows * num_blocks]"""
    num_keys: int
    lens: torch.Tensor
    """int64 [rows]"""


class CpuAttention:
    """See the module's docstring. Caches hold the model's dtype; softmax is in fp32.

    `kernels` serve heads up to `MAX_HEAD_DIM` wide; for wider ones pass None.
    """

    def __init__(self, block_size: int, kernels: CpuKernels | None) -> None:
        self._block_size = block_size
        self._kernels = kernels

    def plan(self, batch: ForwardBatch) -> None:
        """See `AttentionBackend.plan`."""
        self._batch = batch
        if self._kernels is None:
            self._plan_torch(batch)

    def _plan_torch(self, batch: ForwardBatch) -> None:
        self._masks: dict[tuple[int, int | None], torch.Tensor | None] = {}
        decode_lens = batch.context_lens[: batch.num_decodes]
        self._order = sorted(range(batch.num_decodes), key=decode_lens.__getitem__)
        self._permuted = self._order != list(range(batch.num_decodes))
        self._permutation = torch.tensor(self._order, dtype=torch.int64)
        self._inverse = torch.empty_like(self._permutation)
        self._inverse[self._permutation] = torch.arange(len(self._order))
        self._groups = self._group(decode_lens)

    def _group(self, lens: list[int]) -> list[_DecodeGroup]:
        groups, start = [], 0
        for end in range(1, len(self._order) + 1):
            shortest = lens[self._order[start]]
            if end < len(self._order) and lens[self._order[end]] <= LENGTH_RATIO * shortest + 4 * self._block_size:
                continue
            rows = self._order[start:end]
            num_blocks = -(-lens[rows[-1]] // self._block_size)
            blocks = self._batch.block_tables[rows, :num_blocks].long().flatten()
            row_lens = torch.tensor([lens[row] for row in rows])
            groups.append(_DecodeGroup(slice(start, end), blocks, num_blocks * self._block_size, row_lens))
            start = end
        return groups

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

        cos and sin are `[T, D]`. qkv is overwritten. Needs the C kernels.
        """
        assert self._kernels is not None
        self._kernels.rope_and_write(qkv, cos, sin, self._batch.slot_mapping, cache.k, cache.v, heads)
        q = qkv[:, : heads * cos.shape[1]].view(len(qkv), heads, -1).transpose(0, 1)
        return self._attend(q, cache, scaling, None, window).flatten(1)

    def _attend(
        self, q: torch.Tensor, cache: LayerCache, scaling: float, softcap: float | None, window: int | None
    ) -> torch.Tensor:
        """q `[H, T, Dk]` over what the cache holds now; returns `[T, H, Dv]`."""
        num_decodes = self._batch.num_decodes
        outputs = [] if num_decodes == 0 else [self._decode(q[:, :num_decodes], cache, scaling, softcap, window)]
        start = num_decodes
        for row in range(num_decodes, len(self._batch.query_lens)):
            end = start + self._batch.query_lens[row]
            outputs.append(self._prompt(q[:, start:end], row, cache, scaling, softcap, window))
            start = end
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _decode(
        self, q: torch.Tensor, cache: LayerCache, scaling: float, softcap: float | None, window: int | None
    ) -> torch.Tensor:
        """q `[H, D, Dk]` over D decoding sequences; returns `[D, H, Dv]`."""
        kv_heads = cache.k.shape[0]
        heads, num_decodes, _ = q.shape
        if self._kernels is not None:
            return self._kernels.paged_decode(
                q.transpose(0, 1),
                cache.k,
                cache.v,
                self._batch.block_tables,
                self._batch.seqlens_k,
                block_size=self._block_size,
                scaling=scaling,
                softcap=softcap,
                window=window,
            )
        if self._permuted:
            q = q[:, self._permutation]
        q = q.reshape(kv_heads, heads // kv_heads, num_decodes, -1).transpose(1, 2) * scaling
        outputs = []
        for index, group in enumerate(self._groups):
            keys = self._gather(cache.k, group)
            scores = torch.matmul(q[:, group.rows], keys.transpose(2, 3)).float()
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            mask = self._decode_mask(index, window)
            if mask is not None:
                scores += mask
            values = self._gather(cache.v, group)
            outputs.append(torch.matmul(scores.softmax(-1).to(q.dtype), values))
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        if self._permuted:
            output = output[:, self._inverse]
        return output.transpose(0, 1).reshape(num_decodes, heads, -1)

    def _gather(self, cache: torch.Tensor, group: _DecodeGroup) -> torch.Tensor:
        """The group's blocks, `[KV, rows, num_keys, D]`."""
        heads, _, dim = cache.shape
        gathered = cache.view(heads, -1, self._block_size * dim).index_select(1, group.blocks)
        return gathered.view(heads, len(group.lens), group.num_keys, dim)

    def _decode_mask(self, index: int, window: int | None) -> torch.Tensor | None:
        """fp32 `[rows, 1, num_keys]` to be added to the scores, None where nothing is hidden; once a step."""
        if (index, window) not in self._masks:
            group = self._groups[index]
            shown = visible(group.lens - 1, torch.arange(group.num_keys), window)
            mask = torch.zeros(shown.shape).masked_fill_(~shown, float("-inf")).unsqueeze(1)
            self._masks[index, window] = None if bool(shown.all()) else mask
        return self._masks[index, window]

    def _prompt(
        self, q: torch.Tensor, row: int, cache: LayerCache, scaling: float, softcap: float | None, window: int | None
    ) -> torch.Tensor:
        """q `[H, n, Dk]`, the newest n tokens of one sequence; returns `[n, H, Dv]`."""
        context_len, query_len = self._batch.context_lens[row], q.shape[1]
        num_blocks = -(-context_len // self._block_size)
        group = _DecodeGroup(
            slice(0, 1),
            self._batch.block_tables[row, :num_blocks].long(),
            num_blocks * self._block_size,
            torch.tensor([context_len]),
        )
        keys = self._gather(cache.k, group)[:, 0, :context_len]
        values = self._gather(cache.v, group)[:, 0, :context_len]
        chunk = max(1, SCORES_LIMIT // (q.shape[0] * context_len))
        outputs = []
        for start in range(0, query_len, chunk):
            end = min(start + chunk, query_len)
            first = context_len - query_len + start
            last_key = first + end - start
            shown = visible(torch.arange(first, last_key), torch.arange(last_key), window)
            part = q[:, start:end]
            if softcap:
                outputs.append(_softcapped(part, keys[:, :last_key], values[:, :last_key], shown, scaling, softcap))
            else:
                outputs.append(
                    F.scaled_dot_product_attention(
                        part.unsqueeze(0),
                        keys[:, :last_key].unsqueeze(0),
                        values[:, :last_key].unsqueeze(0),
                        attn_mask=shown,
                        scale=scaling,
                        enable_gqa=True,
                    )[0]
                )
        return torch.cat(outputs, dim=1).transpose(0, 1)


def _softcapped(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, shown: torch.Tensor, scaling: float, softcap: float
) -> torch.Tensor:
    """Attention with capped scores (Gemma 2, arXiv 2408.00118): q `[H, n, D]`, k and v `[KV, m, D]`."""
    kv_heads, group = k.shape[0], q.shape[0] // k.shape[0]
    packed = q.reshape(kv_heads, group, *q.shape[1:])
    scores = torch.matmul(packed * scaling, k.unsqueeze(1).transpose(2, 3)).float()
    scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~shown, float("-inf"))
    output = torch.matmul(scores.softmax(-1).to(q.dtype), v.unsqueeze(1))
    return output.reshape(q.shape[0], q.shape[1], -1)
