"""The device tensors of one step, packed from what the scheduler chose."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch

from engine.device.device import to_device, upload
from engine.device.host_batch import HostBatch, Span, TableChanges
from engine.scheduling.block_manager import NULL_BLOCK
from engine.scheduling.images import PromptImage, looks_of, rows_of
from engine.scheduling.scheduled import Scheduled
from engine.scheduling.sequence import Sequence

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Mixture:
    """Which rows of a recorded step decode: known on the device alone, so that a repetition may have others."""

    decode_lens: torch.Tensor
    """int32 [S]: `seqlens_k` of a row that decodes, 0 of another. Those come first: row i is then token i."""
    prompt_starts: torch.Tensor
    """int32 [S + 1]: `query_starts` without the tokens that decode."""


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One step's rows, packed without padding: T tokens of S sequences, of R of which the logits are needed.

    The first `num_decodes` sequences have one token each; token i of the batch then belongs to sequence i.
    """

    input_ids: torch.Tensor
    """int64 [T]"""
    positions: torch.Tensor
    """int64 [T], or [3, T] where images have height and width: places for the model's rotary embedding."""
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
    spans: list[Span] = field(default_factory=list)
    mixture: Mixture | None = None
    """Of a step that is recorded; `query_lens`, `context_lens` and `num_decodes` then say what there may be at most."""


class BatchBuilder:
    """Packs batches, and keeps on the device what they share: the newest tokens and the block tables, by slot."""

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_blocks: int,
        block_size: int,
        device: torch.device,
        num_inputs: int = 0,
        crosses: bool = False,
    ) -> None:
        """`inputs` has room for `num_inputs` numbers behind the newest tokens, for whoever keeps a batch there.

        With `crosses` tokens look at images instead of standing for them.
        """
        self._crosses = crosses
        self._block_size = block_size
        self._device = device
        self.inputs = torch.zeros(max_num_seqs + num_inputs, dtype=torch.int64, device=device)
        self.last_tokens = self.inputs[:max_num_seqs]
        """By slot: the newest sampled token. The sampler writes it, and rows read it whose token the host lacks yet."""
        # One row more than there are slots: padding's, which stays empty.
        self._tables = np.full((max_num_seqs + 1, max_blocks), NULL_BLOCK, dtype=np.int32)
        self.tables = to_device(self._tables, device)
        """int32 [slots + 1, max_blocks]: each slot's block table, true as far as its sequence has blocks."""
        self._owners: list[tuple[Sequence, int] | None] = [None] * max_num_seqs
        """By slot: whose table the row holds, since which of its preemptions."""
        self._copied = [0] * max_num_seqs
        self._untold = [TableChanges(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))]
        """Of steps whose packing failed later on: other ranks have not heard of them."""

    @property
    def num_slots(self) -> int:
        """Sequences that can run at once."""
        return len(self._copied)

    def build(self, rows: list[Scheduled]) -> ForwardBatch:
        """Pack the rows in the given order, on the device."""
        return self.upload(self.pack(rows))

    def pack(self, rows: list[Scheduled]) -> HostBatch:
        """Pack the rows in the given order, and bring their block tables up to date."""
        slots = [row.sequence.slot for row in rows]
        query_lens = [row.num_tokens for row in rows]
        context_lens = [row.end for row in rows]
        self._untold.append(self._update_tables(rows))
        token_ids: list[int] = []
        unread: list[int] = []
        for row in rows:
            token_ids.extend(row.sequence.token_ids[row.first : row.end])
            if _reads(row):
                unread.append(len(token_ids))
                token_ids.append(0)
        lens = np.asarray(query_lens)
        ends = np.cumsum(lens)
        starts = (ends - lens).tolist()
        positions = np.arange(len(token_ids)) - np.repeat(ends - np.asarray(context_lens), lens)
        blocks = self._tables[np.repeat(slots, lens), positions // self._block_size]
        images = [] if self._crosses else _parts(rows_of, rows, starts)
        needed = [end - 1 for row, end in zip(rows, ends.tolist(), strict=True) if row.samples]
        num_samples = len(needed)
        for row, end, context_len in zip(rows, ends.tolist(), context_lens, strict=True):
            needed += [end - context_len + position for position in row.scored]
        changes = TableChanges(
            np.concatenate([untold.places for untold in self._untold]),
            np.concatenate([untold.blocks for untold in self._untold]),
        )
        host = HostBatch(
            token_ids=np.asarray(token_ids),
            unread=unread,
            unread_slots=[row.sequence.slot for row in rows if _reads(row)],
            positions=_placed(positions, rows, starts),
            slot_mapping=blocks.astype(np.int64) * self._block_size + positions % self._block_size,
            slots=np.asarray(slots),
            logits_index=np.asarray(needed, dtype=np.int64),
            query_lens=query_lens,
            context_lens=context_lens,
            num_decodes=next((i for i, row in enumerate(rows) if row.num_tokens > 1), len(rows)),
            num_samples=num_samples,
            changes=changes,
            images=images,
            sees_images=bool(images),
            looks=_parts(looks_of, rows, starts) if self._crosses else [],
            spans=_spans(rows, starts),
        )
        del self._untold[1:]
        return host

    def upload(self, host: HostBatch) -> ForwardBatch:
        """The batch on the device, in one copy."""
        input_ids, positions, slot_mapping, slots, lens, starts, logits_index, unread, unread_slots = upload(
            [
                host.token_ids, host.positions.ravel(), host.slot_mapping, host.slots, np.asarray(host.context_lens),
                np.concatenate([[0], np.cumsum(host.query_lens)]), host.logits_index,
                np.asarray(host.unread, dtype=np.int64), np.asarray(host.unread_slots, dtype=np.int64),
            ],
            self._device,
        )  # fmt: skip
        if host.unread:
            input_ids.index_copy_(0, unread, self.last_tokens[unread_slots])
        max_blocks = -(-max(host.context_lens) // self._block_size)
        return ForwardBatch(
            input_ids=input_ids,
            positions=positions.view(host.positions.shape),
            slot_mapping=slot_mapping,
            block_tables=self.tables[:, :max_blocks].index_select(0, slots),
            seqlens_k=lens.to(torch.int32),
            query_starts=starts.to(torch.int32),
            logits_index=logits_index,
            query_lens=host.query_lens,
            context_lens=host.context_lens,
            num_decodes=host.num_decodes,
            spans=host.spans,
        )

    def follow(self, changes: TableChanges) -> None:
        """Bring the block tables up to date, as another rank's builder has changed them."""
        tables = self._tables.reshape(-1)
        tables[changes.places] = changes.blocks  # the last one holds, where a place comes more than once
        self._upload(TableChanges(changes.places, tables[changes.places].astype(np.int64)))

    def _update_tables(self, rows: list[Scheduled]) -> TableChanges:
        """Copy what is new in the rows' block tables since they last ran, on the host and on the device."""
        places: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
        blocks: list[int] = []
        width = self._tables.shape[1]
        for row in rows:
            sequence, slot = row.sequence, row.sequence.slot
            owner = (sequence, sequence.num_preemptions)
            if self._owners[slot] != owner:
                self._owners[slot] = owner
                self._copied[slot] = 0
                self._tables[slot] = NULL_BLOCK
            have, need = self._copied[slot], len(sequence.block_table)
            if need > have:
                self._tables[slot, have:need] = sequence.block_table[have:]
                places.append(np.arange(slot * width + have, slot * width + need))
                blocks += sequence.block_table[have:]
        changes = TableChanges(np.concatenate(places), np.asarray(blocks, dtype=np.int64))
        self._upload(changes)
        # Only now: the device may have had no memory for this, and then the rows are tried again.
        for row in rows:
            self._copied[row.sequence.slot] = len(row.sequence.block_table)
        return changes

    def _upload(self, changes: TableChanges) -> None:
        if len(changes.places) and self._device.type != "cpu":
            where, what = upload([changes.places, changes.blocks], self._device)
            self.tables.view(-1).index_copy_(0, where, what.to(torch.int32))


def _parts(
    parts_of: Callable[[tuple[PromptImage, ...], int, int, int], list[T]], rows: list[Scheduled], starts: list[int]
) -> list[T]:
    return [
        part
        for row, start in zip(rows, starts, strict=True)
        for part in parts_of(row.sequence.images, row.first, row.end, start)
    ]


def _spans(rows: list[Scheduled], starts: list[int]) -> list[Span]:
    found = []
    for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
        for image in row.sequence.images:
            if image.is_whole and row.first <= image.start < row.end:
                assert image.end <= row.end, "an image that is computed whole is never cut"
                found.append(Span(number, start + image.start - row.first, image.start, image.length))
    return found


def _placed(positions: np.ndarray, rows: list[Scheduled], starts: list[int]) -> np.ndarray:
    """Places in the text as the model counts them: in three directions if one of the step's tokens needs that."""
    placed = [(row, start) for row, start in zip(rows, starts, strict=True) if row.sequence.placement is not None]
    if not placed:
        return positions
    in_prompts = any(row.first < row.sequence.num_prompt_tokens for row, _ in placed)
    positions = np.tile(positions, (3, 1)) if in_prompts else positions.copy()
    for row, start in placed:
        placement, num_prompt = row.sequence.placement, row.sequence.num_prompt_tokens
        assert placement is not None
        known = max(0, min(row.end, num_prompt) - row.first)
        if known:
            positions[:, start : start + known] = placement.positions[:, row.first : row.first + known]
        positions[..., start + known : start + row.num_tokens] += placement.delta
    return positions


def _reads(row: Scheduled) -> bool:
    """Whether the row's last token has not come back to the host."""
    return row.end > len(row.sequence.token_ids)
