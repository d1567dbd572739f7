"""Decoding steps in a few fixed shapes, whose launches a CUDA device records once and then repeats by itself.

A step of decoding rows is padded to the next bucket of rows. Its tensors are copied into buffers that stay where they
are, so that a recorded graph reads them; a row too many has one token whose key and value go to the null block. A
bucket runs eagerly `WARM_STEPS` times, then it is recorded. On a CPU nothing is recorded, and the padded step runs as
it is: the bookkeeping is the same.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from engine.block_manager import NULL_BLOCK
from engine.forward_batch import ForwardBatch

logger = logging.getLogger(__name__)

WARM_STEPS = 3
Forward = Callable[[ForwardBatch], torch.Tensor]


def bucket_sizes(max_num_seqs: int) -> list[int]:
    """1, 2, 4, 8, then steps of 8 to 64, of 16 beyond, and the limit itself."""
    sizes = [1, 2, 4, *range(8, 65, 8), *range(80, max_num_seqs + 16, 16)]
    return sorted({size for size in sizes if size < max_num_seqs} | {max_num_seqs})


@dataclass(slots=True)
class _Bucket:
    batch: ForwardBatch
    """Views of the shared buffers, of the bucket's number of rows."""
    seen: int = 0
    graph: torch.cuda.CUDAGraph | None = None
    logits: torch.Tensor | None = None


class DecodeGraphs:
    """Runs decoding steps in buckets. `plan` prepares the attention of a batch, `forward` computes its logits."""

    def __init__(
        self,
        plan: Callable[[ForwardBatch], None],
        forward: Forward,
        *,
        max_num_seqs: int,
        max_blocks: int,
        max_context: int,
        device: torch.device,
    ) -> None:
        self._plan, self._forward = plan, forward
        self._device = device
        self._sizes = bucket_sizes(max_num_seqs)
        self._max_context = max_context
        self._buckets: dict[int, _Bucket] = {}
        rows = self._sizes[-1]
        self._buffers = ForwardBatch(
            input_ids=torch.zeros(rows, dtype=torch.int64, device=device),
            positions=torch.zeros(rows, dtype=torch.int64, device=device),
            slot_mapping=torch.zeros(rows, dtype=torch.int64, device=device),
            block_tables=torch.full((rows, max_blocks), NULL_BLOCK, dtype=torch.int32, device=device),
            seqlens_k=torch.ones(rows, dtype=torch.int32, device=device),
            query_starts=torch.arange(rows + 1, dtype=torch.int32, device=device),
            logits_index=torch.arange(rows, dtype=torch.int64, device=device),
            query_lens=[1] * rows,
            context_lens=[1] * rows,
            num_decodes=rows,
        )
        self.num_recorded = 0
        self._records = True

    def fits(self, batch: ForwardBatch) -> bool:
        """Whether every row of a step decodes and needs its logits."""
        rows = len(batch.query_lens)
        return batch.num_decodes == rows == batch.logits_index.shape[0] and rows <= self._sizes[-1]

    def run(self, batch: ForwardBatch) -> torch.Tensor:
        """Logits `[R, V]` of a step that `fits`; they are overwritten by the next step of its bucket."""
        rows = len(batch.query_lens)
        size = next(size for size in self._sizes if size >= rows)
        bucket = self._buckets.setdefault(size, _Bucket(self._views(size)))
        self._fill(batch, rows, size)
        if self._device.type != "cuda":
            padded = replace(bucket.batch, context_lens=[*batch.context_lens, *[1] * (size - rows)])
            self._plan(padded)
            return self._forward(padded)[:rows]
        if bucket.graph is None:
            bucket.seen += 1
            if bucket.seen <= WARM_STEPS or not self._records:
                self._plan(bucket.batch)
                return self._forward(bucket.batch)[:rows]
            self._record(bucket, size)
            if bucket.graph is None:
                return self._forward(bucket.batch)[:rows]
        assert bucket.logits is not None
        bucket.graph.replay()
        return bucket.logits[:rows]

    def _views(self, size: int) -> ForwardBatch:
        whole = self._buffers
        return ForwardBatch(
            input_ids=whole.input_ids[:size],
            positions=whole.positions[:size],
            slot_mapping=whole.slot_mapping[:size],
            block_tables=whole.block_tables[:size],
            seqlens_k=whole.seqlens_k[:size],
            query_starts=whole.query_starts[: size + 1],
            logits_index=whole.logits_index[:size],
            query_lens=[1] * size,
            # A graph must serve any context, so its attention is laid out for the longest.
            context_lens=[self._max_context] * size,
            num_decodes=size,
        )

    def _fill(self, batch: ForwardBatch, rows: int, size: int) -> None:
        """Copy a step into the buffers; rows beyond it are a token of the null block each."""
        into = self._buffers
        width = batch.block_tables.shape[1]
        for name in ("input_ids", "positions", "slot_mapping", "seqlens_k"):
            getattr(into, name)[:rows].copy_(getattr(batch, name))
        into.block_tables[:rows, :width].copy_(batch.block_tables)
        if rows < size:
            into.input_ids[rows:size].zero_()
            into.positions[rows:size].zero_()
            into.slot_mapping[rows:size].zero_()
            into.seqlens_k[rows:size].fill_(1)
            into.block_tables[rows:size, 0].fill_(NULL_BLOCK)

    def _record(self, bucket: _Bucket, size: int) -> None:
        """Record the bucket's launches, or never try again."""
        self._plan(bucket.batch)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                bucket.logits = self._forward(bucket.batch)
        except RuntimeError:
            self._records = False
            logger.warning("decoding steps cannot be recorded, and run eagerly", exc_info=True)
            return
        bucket.graph = graph
        self.num_recorded += 1
        logger.info("recorded decoding steps of %d rows", size)
