"""Decoding steps in a few fixed shapes, so that they can be recorded (`engine.execution.recording`).

A step of decoding rows is padded to the next bucket of rows; a row too many has one token whose key and value go to the
null block. All that the step needs is one row of `FIELDS` for each, copied at once to where a recorded graph reads it.
On a CPU the padded step runs as it is: the bookkeeping is the same.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from engine.device.device import upload_into
from engine.device.forward_batch import BatchBuilder, ForwardBatch
from engine.device.host_batch import HostBatch
from engine.execution.recording import Recorder

FIELDS = ("token", "source", "position", "kv_slot", "context_len", "slot")
"""Of a row: its token if the host knows it; where in `BatchBuilder.inputs` its token stands; its place in the text;
where its key and value go; its context's length, itself included; and the slot of its sequence."""
Forward = Callable[[ForwardBatch], torch.Tensor]


class DecodeGraphs:
    """Runs decoding steps in buckets. `forward` computes the logits of a batch."""

    def __init__(
        self,
        builder: BatchBuilder,
        forward: Forward,
        recorder: Recorder,
        sizes: Sequence[int],
        *,
        max_context: int,
        device: torch.device,
    ) -> None:
        """Buckets of `sizes` rows, in order. The `builder` has room for `len(FIELDS)` numbers for each of its slots."""
        self._builder = builder
        self._forward = forward
        self._device = device
        self._sizes = sizes
        self.num_sizes = len(sizes)
        self._max_context = max_context
        self._recorder = recorder
        self._graphs: dict[int, torch.cuda.CUDAGraph | None] = {}
        """By rows; None where it was tried, and cannot be."""
        self._query_starts = torch.arange(builder.num_slots + 1, dtype=torch.int32, device=device)
        self._logits_index = torch.arange(builder.num_slots, dtype=torch.int64, device=device)

    @property
    def num_recorded(self) -> int:
        """Sizes that the device repeats by itself."""
        return sum(graph is not None for graph in self._graphs.values())

    def warm_up(self) -> Iterator[None]:
        """Run every bucket with padding alone, the largest first, and record it, so that no request waits for that."""
        for size in reversed(self._sizes):
            self._record(size, self.padded(size)())
            yield

    def padded(self, size: int, token: int = 0, *, context: int = 1) -> Callable[[], torch.Tensor]:
        """A bucket's step over padding alone, whose rows have this token behind so many; it reads what was put last.

        All of its context is in the null block.
        """
        fields = self._padding(size)
        fields[0] = token
        fields[4] = min(context, self._max_context)
        upload_into(self._fields(size), fields)
        return partial(self._step, size, None)

    def forget(self) -> None:
        """Drop what is recorded, until it is recorded anew."""
        self._graphs.clear()
        self._recorder.forget()

    def run(self, host: HostBatch) -> torch.Tensor:
        """Logits `[R, V]` of a step that `only_decodes`; they are overwritten by the next step."""
        rows = len(host.query_lens)
        size = next(size for size in self._sizes if size >= rows)
        self._write(host, size)
        graph = self._graphs.get(size)
        if graph is not None:
            return self._recorder.replay(graph, rows)
        # Of a graph the lengths are not known when it is recorded: its attention is laid out for the longest.
        known = [*host.context_lens, *[1] * (size - rows)] if self._device.type == "cpu" else None
        found = self._step(size, known)
        if self._recorder.is_lazy:
            self._record(size, found)
        return found[:rows]

    def _record(self, size: int, found: torch.Tensor) -> None:
        """Record a bucket that has run and `found` logits `[size, V]`, if that was not tried before."""
        if self._recorder.records and size not in self._graphs:
            step = partial(self._step, size, None)
            self._graphs[size] = self._recorder.record(f"decoding steps of {size} rows", step, found)

    def _write(self, host: HostBatch, size: int) -> None:
        """Copy a step's fields to the device; those of rows too many are of a token in the null block."""
        rows, fields = len(host.query_lens), self._padding(size)
        fields[1, host.unread] = host.unread_slots
        fields[0, :rows], fields[2, :rows], fields[3, :rows] = host.token_ids, host.positions, host.slot_mapping
        fields[4, :rows], fields[5, :rows] = host.context_lens, host.slots
        upload_into(self._fields(size), fields)

    def _padding(self, size: int) -> np.ndarray:
        """Fields int64 `[FIELDS, size]` of rows of one token in the null block."""
        offset = self._builder.num_slots
        fields = np.zeros((len(FIELDS), size), dtype=np.int64)
        fields[1] = np.arange(offset, offset + size)
        fields[4] = 1
        fields[5] = offset
        return fields

    def _fields(self, size: int) -> torch.Tensor:
        """A bucket's room in the builder's inputs, int64 `[FIELDS, size]`."""
        start = self._builder.num_slots
        return self._builder.inputs[start : start + len(FIELDS) * size].view(len(FIELDS), size)

    def _step(self, size: int, context_lens: list[int] | None) -> torch.Tensor:
        """Compute what the fields say."""
        _, source, position, kv_slot, context_len, slot = self._fields(size)
        batch = ForwardBatch(
            input_ids=self._builder.inputs.index_select(0, source),
            positions=position,
            slot_mapping=kv_slot,
            block_tables=self._builder.tables.index_select(0, slot),
            seqlens_k=context_len.to(torch.int32),
            query_starts=self._query_starts[: size + 1],
            logits_index=self._logits_index[:size],
            query_lens=[1] * size,
            context_lens=context_lens or [self._max_context] * size,
            num_decodes=size,
        )
        return self._forward(batch)
