"""The device tensors of one step, packed from what the scheduler chose."""

from dataclasses import dataclass

import numpy as np
import torch

from engine.block_manager import NULL_BLOCK
from engine.device import to_device
from engine.scheduler import Scheduled
from engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One step's rows, packed without padding: T tokens of S sequences, of R of which the logits are needed.

    The first `num_decodes` sequences have one token each; token i of the batch then belongs to sequence i.
    """

    input_ids: torch.Tensor
    """int64 [T]"""
    positions: torch.Tensor
    """int64 [T]"""
    slot_mapping: torch.Tensor
    """int64 [T]: where each token's K and V go."""
    block_tables: torch.Tensor
    """int32 [S, max_blocks], padded with the null block."""
    seqlens_k: torch.Tensor
    """int32 [S]: context length of each sequence, this step's tokens included."""
    query_starts: torch.Tensor
    """int32 [S + 1]: where each sequence's tokens begin in T."""
    logits_index: torch.Tensor
    """int64 [R]: the tokens whose logits are needed, first those that sample, then those that are scored."""
    query_lens: list[int]
    """[S], on the host."""
    context_lens: list[int]
    """[S], `seqlens_k` on the host."""
    num_decodes: int


class BatchBuilder:
    """Packs batches. Keeps block tables of running sequences as rows of one host array, by slot."""

    def __init__(self, *, max_num_seqs: int, max_blocks: int, block_size: int, device: torch.device) -> None:
        self._block_size = block_size
        self._device = device
        self.last_tokens = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)
        """By slot: the newest sampled token. The sampler writes it, and rows read it whose token the host lacks yet."""
        self._tables = np.full((max_num_seqs, max_blocks), NULL_BLOCK, dtype=np.int32)
        self._owners: list[tuple[Sequence, int] | None] = [None] * max_num_seqs
        """By slot: whose table the row holds, since which of its preemptions."""
        self._copied = [0] * max_num_seqs

    def build(self, rows: list[Scheduled]) -> ForwardBatch:
        """Pack the rows in the given order."""
        num_decodes = next((i for i, row in enumerate(rows) if row.num_tokens > 1), len(rows))
        slots = [row.sequence.slot for row in rows]
        query_lens = [row.num_tokens for row in rows]
        context_lens = [row.end for row in rows]
        for row in rows:
            self._copy_table(row)
        token_ids: list[int] = []
        unread: list[int] = []
        for row in rows:
            token_ids.extend(row.sequence.token_ids[row.first : row.end])
            if _reads(row):
                unread.append(len(token_ids))
                token_ids.append(0)
        lens = np.asarray(query_lens)
        ends = np.cumsum(lens)
        positions = np.arange(len(token_ids)) - np.repeat(ends - np.asarray(context_lens), lens)
        blocks = self._tables[np.repeat(slots, lens), positions // self._block_size]
        slot_mapping = blocks.astype(np.int64) * self._block_size + positions % self._block_size
        max_blocks = -(-max(context_lens) // self._block_size)
        needed = [end - 1 for row, end in zip(rows, ends.tolist(), strict=True) if row.samples]
        for row, end, context_len in zip(rows, ends.tolist(), context_lens, strict=True):
            needed += [end - context_len + position for position in row.scored]
        device = self._device
        return ForwardBatch(
            input_ids=self._input_ids(token_ids, unread, [row.sequence.slot for row in rows if _reads(row)]),
            positions=to_device(positions, device),
            slot_mapping=to_device(slot_mapping, device),
            block_tables=to_device(self._tables[slots, :max_blocks], device),
            seqlens_k=to_device(np.asarray(context_lens, dtype=np.int32), device),
            query_starts=to_device(np.concatenate([[0], ends]).astype(np.int32), device),
            logits_index=to_device(np.asarray(needed, dtype=np.int64), device),
            query_lens=query_lens,
            context_lens=context_lens,
            num_decodes=num_decodes,
        )

    def _input_ids(self, token_ids: list[int], unread: list[int], slots: list[int]) -> torch.Tensor:
        """int64 [T]; the tokens at `unread` are those that stand in `last_tokens` for `slots`."""
        input_ids = to_device(np.asarray(token_ids), self._device)
        if unread:
            places = to_device(np.asarray([unread, slots]), self._device)
            input_ids.index_copy_(0, places[0], self.last_tokens[places[1]])
        return input_ids

    def _copy_table(self, row: Scheduled) -> None:
        """Bring a slot's row up to date; only what is new since the sequence last ran is copied."""
        sequence = row.sequence
        slot = sequence.slot
        owner = (sequence, sequence.num_preemptions)
        if self._owners[slot] != owner:
            self._owners[slot] = owner
            self._copied[slot] = 0
            self._tables[slot] = NULL_BLOCK
        have, need = self._copied[slot], len(sequence.block_table)
        if need > have:
            self._tables[slot, have:need] = sequence.block_table[have:]
            self._copied[slot] = need


def _reads(row: Scheduled) -> bool:
    """Whether the row's last token has not come back to the host."""
    return row.end > len(row.sequence.token_ids)
