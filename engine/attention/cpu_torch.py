"""Attention of decoding rows in plain torch, for CPUs without a C compiler.

One-token queries never go through SDPA, whose bf16 path takes 5 to 30 times as long for them: the query heads of a KV
head are packed as rows, and matmul, softmax, matmul run over all sequences of about equal length at once. Blocks are
gathered head-major, so that neither product needs a copy of its own.
"""

from dataclasses import dataclass

import torch

from engine.attention.reference import visible
from engine.device.forward_batch import ForwardBatch
from engine.device.kv_cache import LayerCache
from engine.scheduling.block_manager import NULL_BLOCK

LENGTH_RATIO = 2.0
"""Decoding sequences share one padded product while the longest is at most this many times the shortest."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Decoding sequences of about equal length, padded to the longest."""

    rows: slice
    """Which of the length-sorted decoding sequences."""
    blocks: torch.Tensor
    """int64 [rows * num_blocks]"""
    num_keys: int
    lens: torch.Tensor
    """int64 [rows]"""
    tails: torch.Tensor
    """int64: keys of the gathered blocks, counted over all rows, that lie past a row's context in its last block."""


class TorchDecode:
    """Plan once a step, run once a layer, like a backend, but for the decoding rows alone."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size

    def plan(self, batch: ForwardBatch) -> None:
        """Sort the decoding rows by length and group them."""
        lens = batch.context_lens[: batch.num_decodes]
        order = sorted(range(len(lens)), key=lens.__getitem__)
        self._masks: dict[tuple[int, int | None], torch.Tensor | None] = {}
        self._permutation = torch.tensor(order, dtype=torch.int64)
        self._inverse = self._permutation.argsort()
        self._groups: list[_Group] = []
        start = 0
        for end in range(1, len(order) + 1):
            limit = LENGTH_RATIO * lens[order[start]] + 4 * self._block_size
            if end < len(order) and lens[order[end]] <= limit:
                continue
            self._groups.append(self._group(batch, slice(start, end), order[start:end]))
            start = end

    def _group(self, batch: ForwardBatch, where: slice, rows: list[int]) -> _Group:
        """Blocks past a row's context become the null block, whose content is zero: what others left in them may be
        a NaN, which no mask takes out of a product."""
        lens = torch.tensor([batch.context_lens[row] for row in rows])
        num_blocks = -(-int(lens[-1]) // self._block_size)
        num_keys = num_blocks * self._block_size
        empty = torch.arange(0, num_keys, self._block_size) >= lens.unsqueeze(1)
        blocks = batch.block_tables[rows, :num_blocks].long().masked_fill(empty, NULL_BLOCK)
        past = torch.arange(num_keys) >= lens.unsqueeze(1)
        tails = (past & ~empty.repeat_interleave(self._block_size, dim=1)).flatten().nonzero().squeeze(1)
        return _Group(where, blocks.flatten(), num_keys, lens, tails)

    def run(
        self, q: torch.Tensor, cache: LayerCache, scaling: float, softcap: float | None, window: int | None
    ) -> torch.Tensor:
        """q `[H, D, Dk]` over D decoding sequences; returns `[D, H, Dv]`."""
        kv_heads = cache.k.shape[0]
        heads, num_decodes, k_dim = q.shape
        q = q[:, self._permutation].reshape(kv_heads, heads // kv_heads, num_decodes, k_dim).transpose(1, 2) * scaling
        outputs = []
        for index, group in enumerate(self._groups):
            keys = self._gather(cache.k, group)
            scores = torch.matmul(q[:, group.rows], keys.transpose(2, 3)).float()
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            mask = self._mask(index, window)
            if mask is not None:
                scores += mask
            values = keys[..., : cache.v.shape[2]] if cache.is_latent else self._gather(cache.v, group)
            outputs.append(torch.matmul(scores.softmax(-1).to(q.dtype), values))
        output = torch.cat(outputs, dim=1)[:, self._inverse]
        return output.transpose(0, 1).reshape(num_decodes, heads, -1)

    def _gather(self, cache: torch.Tensor, group: _Group) -> torch.Tensor:
        """The group's blocks, `[KV, rows, num_keys, D]`, with zeros past each row's context."""
        heads, _, dim = cache.shape
        gathered = cache.view(heads, -1, self._block_size * dim).index_select(1, group.blocks)
        gathered.view(heads, -1, dim).index_fill_(1, group.tails, 0)
        return gathered.view(heads, len(group.lens), group.num_keys, dim)

    def _mask(self, index: int, window: int | None) -> torch.Tensor | None:
        """fp32 `[rows, 1, num_keys]` to be added to the scores, None where nothing is hidden; once a step."""
        if (index, window) not in self._masks:
            group = self._groups[index]
            shown = visible(group.lens - 1, torch.arange(group.num_keys), window)
            mask = torch.zeros(shown.shape).masked_fill_(~shown, float("-inf")).unsqueeze(1)
            self._masks[index, window] = None if bool(shown.all()) else mask
        return self._masks[index, window]
