"""Decoding steps in a few fixed shapes, whose launches a CUDA device records once and then repeats by itself.

A step of decoding rows is padded to the next bucket of rows; a row too many has one token whose key and value go to the
null block. All that the step needs is one row of `FIELDS` for each, copied at once to where a recorded graph reads it.
A bucket runs eagerly `WARM_STEPS` times, then it is recorded. On a CPU nothing is recorded, and the padded step runs as
it is: the bookkeeping is the same.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine.device.device import upload_into
from engine.device.forward_batch import BatchBuilder, ForwardBatch, HostBatch

logger = logging.getLogger(__name__)

WARM_STEPS = 3
FIELDS = ("token", "source", "position", "kv_slot", "context_len", "slot")
"""Of a row: its token if the host knows it; where in `BatchBuilder.inputs` its token stands; its place in the text;
where its key and value go; its context's length, itself included; and the slot of its sequence."""
BYTES_PER_GRAPH = 24 * 2**20
"""What a recorded step takes beside its tensors, by the driver's own books: an upper bound for memory planning."""
Forward = Callable[[ForwardBatch], torch.Tensor]


def bucket_sizes(max_num_seqs: int) -> list[int]:
    """1, 2, 4, 8, then steps of 8 to 64, of 16 beyond, and the limit itself."""
    sizes = [1, 2, 4, *range(8, 65, 8), *range(80, max_num_seqs + 16, 16)]
    return sorted({size for size in sizes if size < max_num_seqs} | {max_num_seqs})


def graphs_bytes(max_num_seqs: int, vocab_size: int, itemsize: int) -> int:
    """Memory to keep for all buckets: their records, and the logits of the largest."""
    return len(bucket_sizes(max_num_seqs)) * BYTES_PER_GRAPH + max_num_seqs * vocab_size * itemsize


@dataclass(slots=True)
class _Bucket:
    seen: int = 0
    graph: torch.cuda.CUDAGraph | None = None


class DecodeGraphs:
    """Runs decoding steps in buckets. `plan` prepares the attention of a batch, `forward` computes its logits."""

    def __init__(
        self,
        builder: BatchBuilder,
        plan: Callable[[ForwardBatch], None],
        forward: Forward,
        *,
        max_context: int,
        device: torch.device,
    ) -> None:
        """The `builder` has room for `len(FIELDS)` numbers for each of its slots."""
        self._builder = builder
        self._plan, self._forward = plan, forward
        self._device = device
        self._sizes = bucket_sizes(builder.num_slots)
        self._max_context = max_context
        self._buckets: dict[int, _Bucket] = {}
        self._query_starts = torch.arange(builder.num_slots + 1, dtype=torch.int32, device=device)
        self._logits_index = torch.arange(builder.num_slots, dtype=torch.int64, device=device)
        self._pool: Any = None
        self._logits: torch.Tensor | None = None
        """Of the newest recorded step, whatever its bucket: [slots, V]."""
        self.num_recorded = 0
        self._records = device.type == "cuda"

    def warm_up(self) -> None:
        """Run every bucket with padding alone, so that no kernel is built while a request waits."""
        for size in self._sizes:
            upload_into(self._fields(size), self._padding(size))
            self._step(size, None)

    def run(self, host: HostBatch) -> torch.Tensor:
        """Logits `[R, V]` of a step that `only_decodes`; they are overwritten by the next step."""
        rows = len(host.query_lens)
        size = next(size for size in self._sizes if size >= rows)
        bucket = self._buckets.setdefault(size, _Bucket())
        self._write(host, size)
        if bucket.graph is not None:
            assert self._logits is not None
            bucket.graph.replay()
            return self._logits[:rows]
        bucket.seen += 1
        if bucket.seen > WARM_STEPS and self._records:
            self._record(bucket, size)
        # Of a graph the lengths are not known when it is recorded: its attention is laid out for the longest.
        known = [*host.context_lens, *[1] * (size - rows)] if self._device.type == "cpu" else None
        return self._step(size, known)[:rows]

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
        self._plan(batch)
        return self._forward(batch)

    def _record(self, bucket: _Bucket, size: int) -> None:
        """Record the bucket's launches, or never try again."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        try:
            if self._logits is None:
                width = self._step(size, None)
                self._logits = width.new_empty(self._builder.num_slots, width.shape[1])
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._logits[:size].copy_(self._step(size, None))
        except RuntimeError:
            torch.cuda.set_stream(stream)  # where recording breaks off, its own stays the current one
            self._records = False
            logger.warning("decoding steps cannot be recorded, and run eagerly", exc_info=True)
            return
        bucket.graph = graph
        self.num_recorded += 1
        logger.info("recorded decoding steps of %d rows", size)
