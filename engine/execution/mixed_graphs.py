"""Steps with prompts, alone or beside decoding rows, in a few fixed shapes, so that they can be recorded.

Launching such a step takes the host longer than a GPU needs for a few hundred tokens (bench/LOG.md, 2026-11-26), and
that is what prompts beside decoding rows mostly are. A step is padded to the next size in tokens and in rows; the
tokens too many are one row more, in the null block. Steps that are larger, or that score tokens, run as they are.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch

from engine.device.device import upload_into
from engine.device.forward_batch import BatchBuilder, ForwardBatch, Mixture
from engine.device.host_batch import HostBatch
from engine.execution.graphs import Forward
from engine.execution.recording import Recorder
from engine.sizing import steps

TOKEN_FIELDS, ROW_FIELDS = 4, 4


def input_room(max_num_seqs: int) -> int:
    """Numbers that a step's fields take in the builder's inputs at most."""
    return TOKEN_FIELDS * steps.TOKEN_SIZES[-1] + ROW_FIELDS * (max_num_seqs + 2) + max_num_seqs


class MixedGraphs:
    """Runs steps with prompts in buckets. `forward` computes the logits of a batch."""

    def __init__(
        self,
        builder: BatchBuilder,
        forward: Forward,
        recorder: Recorder,
        sizes: Sequence[tuple[int, int]],
        *,
        max_context: int,
        reads_lengths: bool,
    ) -> None:
        """Buckets of `sizes`, tokens and rows each, in order. The `builder` has room for `input_room` numbers.

        With `reads_lengths` the attention finds the lengths of rows on the device, and the host does not tell it.
        """
        self._builder = builder
        self._forward = forward
        self._max_context = max_context
        self._reads_lengths = reads_lengths
        self._recorder = recorder
        self._sizes = sizes
        self.num_sizes = len(sizes)
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph | None] = {}
        """By tokens and rows; None where it was tried, and cannot be."""

    @property
    def token_sizes(self) -> tuple[int, ...]:
        """Tokens of the steps that need no padding, in order."""
        return tuple(sorted({tokens for tokens, _ in self._sizes}))

    @property
    def num_recorded(self) -> int:
        """Sizes that the device repeats by itself."""
        return sum(graph is not None for graph in self._graphs.values())

    def warm_up(self) -> Iterator[None]:
        """Run every size with padding alone, the largest first, and record it."""
        for size in reversed(self._sizes):
            upload_into(self._room(size), self._fields(None, size))
            self._record(size, self._step(size, [size[0]], [size[0]]))
            yield

    def size_for(self, host: HostBatch) -> tuple[int, int] | None:
        """The size that a step is padded to; None for one that is too large, or has tokens to score, or images."""
        tokens, rows = len(host.token_ids), len(host.query_lens)
        if len(host.logits_index) > host.num_samples or not host.is_text:
            return None
        return next((size for size in self._sizes if size[0] >= tokens and size[1] > rows), None)

    def forget(self) -> None:
        """Drop what is recorded, until it is recorded anew."""
        self._graphs.clear()
        self._recorder.forget()

    def run(self, host: HostBatch, size: tuple[int, int]) -> torch.Tensor:
        """Logits `[R, V]` of the rows that sample; they are overwritten by the next step."""
        upload_into(self._room(size), self._fields(host, size))
        graph = self._graphs.get(size)
        if graph is not None:
            return self._recorder.replay(graph, host.num_samples)
        padding = [size[0] - len(host.token_ids)]
        found = self._step(size, host.query_lens + padding, host.context_lens + padding)
        if self._recorder.is_lazy:
            self._record(size, found)
        return found[: host.num_samples]

    def _record(self, size: tuple[int, int], found: torch.Tensor) -> None:
        """Record a size that has run and `found` logits `[R, V]`, if that was not tried before."""
        if self._recorder.records and size not in self._graphs:
            step = partial(self._step, size, [size[0]], [size[0]])
            self._graphs[size] = self._recorder.record(f"steps of {size[0]} tokens in {size[1]} rows", step, found)

    def _room(self, size: tuple[int, int]) -> torch.Tensor:
        """A size's room in the builder's inputs."""
        tokens, rows = size
        start = self._builder.num_slots
        return self._builder.inputs[start : start + TOKEN_FIELDS * tokens + ROW_FIELDS * rows + 1 + self._logits(rows)]

    def _logits(self, rows: int) -> int:
        return min(rows, self._builder.num_slots)

    def _fields(self, host: HostBatch | None, size: tuple[int, int]) -> np.ndarray:
        """All that a step needs, int64: of its tokens, of its rows, and whose logits are wanted. None: padding alone.

        Of tokens: the token if the host knows it, where in `BatchBuilder.inputs` it stands, its place in the text, and
        where its key and value go. Of rows: context, slot, context if it decodes, and where its prompt's tokens begin.
        """
        tokens, rows = size
        offset, used, num_rows, num_decodes = self._builder.num_slots, 0, 0, 0
        of_tokens = np.zeros((TOKEN_FIELDS, tokens), dtype=np.int64)
        contexts, slots, decodes = np.zeros((3, rows), dtype=np.int64)
        starts = np.full(rows + 1, tokens, dtype=np.int64)
        logits = np.zeros(self._logits(rows), dtype=np.int64)
        of_tokens[1] = np.arange(offset, offset + tokens)
        slots[:] = offset
        if host is not None:
            used, num_rows, num_decodes = len(host.token_ids), len(host.query_lens), host.num_decodes
            of_tokens[1, host.unread] = host.unread_slots
            of_tokens[0, :used], of_tokens[2, :used] = host.token_ids, host.positions
            of_tokens[3, :used] = host.slot_mapping
            contexts[:num_rows], slots[:num_rows] = host.context_lens, host.slots
            decodes[:num_decodes] = host.context_lens[:num_decodes]
            starts[1 : num_rows + 1] = np.cumsum(host.query_lens)
            logits[: host.num_samples] = host.logits_index
        starts[: num_decodes + 1] = num_decodes
        of_tokens[2, used:] = np.arange(tokens - used)
        contexts[num_rows] = tokens - used
        return np.concatenate([of_tokens.ravel(), contexts, slots, decodes, starts, logits])

    def _step(self, size: tuple[int, int], query_lens: list[int], context_lens: list[int]) -> torch.Tensor:
        """Compute what the fields say; the lengths are theirs, for a backend that does not read them."""
        tokens, rows = size
        of_tokens, contexts, slots, decodes, starts, logits_index = torch.split(
            self._room(size), [TOKEN_FIELDS * tokens, rows, rows, rows, rows + 1, self._logits(rows)]
        )
        _, source, position, kv_slot = of_tokens.view(TOKEN_FIELDS, tokens)
        known = len(query_lens)
        if self._reads_lengths:
            query_lens, context_lens, known = [tokens] * rows, [self._max_context] * rows, rows
            mixture = Mixture(decodes.to(torch.int32), starts.to(torch.int32))
            query_starts = mixture.prompt_starts
        else:
            mixture = None
            query_starts = torch.tensor([0, *np.cumsum(query_lens).tolist()], dtype=torch.int32, device=starts.device)
        batch = ForwardBatch(
            input_ids=self._builder.inputs.index_select(0, source),
            positions=position,
            slot_mapping=kv_slot,
            block_tables=self._builder.tables.index_select(0, slots[:known]),
            seqlens_k=contexts[:known].to(torch.int32),
            query_starts=query_starts,
            logits_index=logits_index,
            query_lens=query_lens,
            context_lens=context_lens,
            num_decodes=0,
            mixture=mixture,
        )
        return self._forward(batch)
