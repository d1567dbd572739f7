"""Paged attention by torch's own `scaled_dot_product_attention`, one sequence at a time, on any device.

Each sequence's keys and values are gathered from its blocks, or read in place where these follow each other. A prompt
from its first token on needs no mask; otherwise the queries of a KV head's group are packed as rows, and a mask says
what each row sees. SDPA cannot cap scores: where they are capped, a product, a softmax and a product do the same. The
host lays out every sequence, so a step cannot be recorded.
"""

import itertools
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from engine.attention.reference import visible
from engine.attention.spans import SpanAttention
from engine.device.forward_batch import ForwardBatch
from engine.device.kv_cache import LayerCache

SCORES_LIMIT = 1 << 24
"""Most attention scores, or entries of a mask, held at once for a chunk of queries (64 MiB in fp32)."""


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive tokens of one sequence, its newest, that are attended with together."""

    tokens: slice
    blocks: torch.Tensor
    """int64 [num_blocks]"""
    block_size: int
    context_len: int
    first_block: int | None = None
    """The first of the blocks, if they follow each other in memory; told on a CPU, where looking waits for nobody."""
    masks: dict[tuple[int, int, int, int | None], torch.Tensor] = field(default_factory=dict)
    """By first query, number of queries, group and window: what the layers of a step share."""

    @property
    def num_tokens(self) -> int:
        """Queries."""
        return int(self.tokens.stop - self.tokens.start)

    def gather(self, cache: LayerCache) -> tuple[torch.Tensor, torch.Tensor]:
        """The sequence's keys and values, `[KV, context_len, D]`: copied together, or in place if they lie together."""
        keys = self._gather(cache.k)
        return keys, keys[..., : cache.v.shape[2]] if cache.is_latent else self._gather(cache.v)

    def _gather(self, cache: torch.Tensor) -> torch.Tensor:
        heads, _, dim = cache.shape
        if self.first_block is not None:
            start = self.first_block * self.block_size
            return cache[:, start : start + self.context_len]
        blocks = cache.view(heads, -1, self.block_size * dim).index_select(1, self.blocks)
        return blocks.view(heads, -1, dim)[:, : self.context_len]

    def mask(self, start: int, queries: torch.Tensor, group: int, window: int | None) -> torch.Tensor:
        """Added to the scores of packed queries `[H, n, Dk]` from `start` on: `[group * n, num_keys]` in their dtype.

        Made once a step.
        """
        key = (start, queries.shape[1], group, window)
        if key not in self.masks:
            first = self.context_len - self.num_tokens + start
            positions = torch.arange(first + queries.shape[1], device=queries.device)
            shown = visible(positions[first:], positions, window)
            mask = torch.zeros(shown.shape, dtype=queries.dtype, device=queries.device)
            self.masks[key] = mask.masked_fill_(~shown, float("-inf")).repeat(group, 1)
        return self.masks[key]


def plan_run(batch: ForwardBatch, row: int, start: int, block_size: int) -> Run:
    """The tokens of one row of a batch, which begin at `start`."""
    context_len = batch.context_lens[row]
    blocks = batch.block_tables[row, : -(-context_len // block_size)].long()
    first_block = None
    if blocks.device.type == "cpu" and bool((blocks.diff() == 1).all()):
        first_block = int(blocks[0])
    return Run(slice(start, start + batch.query_lens[row]), blocks, block_size, context_len, first_block)


def attend_in_chunks(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    run: Run,
    scaling: float,
    softcap: float | None,
    window: int | None,
) -> torch.Tensor:
    """q `[H, n, Dk]` over keys `[KV, context_len, Dk]` and values `[KV, context_len, Dv]`; returns `[n, H, Dv]`.

    The queries go in chunks of at most `SCORES_LIMIT` scores, the heads of a group packed as rows.
    """
    heads, query_len, _ = q.shape
    chunk = max(1, SCORES_LIMIT // (heads * run.context_len))
    outputs = []
    for start in range(0, query_len, chunk):
        queries = q[:, start : start + chunk]
        mask = run.mask(start, queries, heads // len(keys), window)
        num_keys = mask.shape[1]
        packed = queries.reshape(1, len(keys), -1, q.shape[2])
        k, v = keys[:, :num_keys].unsqueeze(0), values[:, :num_keys].unsqueeze(0)
        if softcap:
            output = softcapped(packed, k, v, mask, scaling, softcap)
        elif q.device.type == "cpu" and q.dtype == torch.float32:
            # SDPA deals out heads whole, as three of them to two cores (bench/LOG.md, 2026-11-25).
            scores = torch.baddbmm(mask, packed[0], k[0].transpose(1, 2), alpha=scaling)
            output = torch.bmm(scores.softmax(-1), v[0])
        else:
            output = F.scaled_dot_product_attention(packed, k, v, attn_mask=mask, scale=scaling)
        outputs.append(output.reshape(heads, queries.shape[1], -1))
    return torch.cat(outputs, dim=1).transpose(0, 1)


def softcapped(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scaling: float, softcap: float
) -> torch.Tensor:
    """SDPA with capped scores (Gemma 2, arXiv 2408.00118).

    q is `[1, KV, n, D]`, k and v are `[1, KV, m, D]`, mask `[n, m]`; returns `[1, KV, n, D]`.
    """
    scores = torch.matmul(q * scaling, k.transpose(2, 3)).float()
    scores = softcap * torch.tanh(scores / softcap) + mask
    return torch.matmul(scores.softmax(-1).to(q.dtype), v)


class SdpaAttention:
    """See the module's docstring. Caches hold the model's dtype."""

    capturable = False
    serves_layers = ""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._spans = SpanAttention(block_size)

    def plan(self, batch: ForwardBatch) -> None:
        """See `AttentionBackend.plan`."""
        self._spans.plan(batch)
        self._slot_mapping = batch.slot_mapping
        starts = itertools.accumulate(batch.query_lens, initial=0)
        rows = range(len(batch.query_lens))
        self._runs = [plan_run(batch, row, start, self._block_size) for row, start in zip(rows, starts, strict=False)]

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
        cache.k.index_copy_(1, self._slot_mapping, k)
        if not cache.is_latent:
            cache.v.index_copy_(1, self._slot_mapping, v)
        out = torch.cat([self._attend(q[:, run.tokens], run, cache, scaling, softcap, window) for run in self._runs])
        return self._spans.replace(out, q, cache, scaling, softcap, window)

    def _attend(
        self, q: torch.Tensor, run: Run, cache: LayerCache, scaling: float, softcap: float | None, window: int | None
    ) -> torch.Tensor:
        """q `[H, n, Dk]` of one sequence; returns `[n, H, Dv]`."""
        keys, values = run.gather(cache)
        hides = window is not None and window < run.context_len
        # Where keys and values differ in width, SDPA repeats the one latent head for all of the queries'.
        whole = run.num_tokens == run.context_len and not cache.is_latent
        if softcap or hides or not (whole or run.num_tokens == 1):
            return attend_in_chunks(q, keys, values, run, scaling, softcap, window)
        if whole:
            q, keys, values = q.unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0)
            grouped = q.shape[1] != keys.shape[1]
            output = F.scaled_dot_product_attention(
                q, keys, values, is_causal=run.num_tokens > 1, scale=scaling, enable_gqa=grouped
            )
            return output[0].transpose(0, 1)
        packed = q.reshape(1, len(keys), -1, q.shape[2])
        output = F.scaled_dot_product_attention(packed, keys.unsqueeze(0), values.unsqueeze(0), scale=scaling)
        return output.reshape(1, len(q), -1)
