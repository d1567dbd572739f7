"""Steps of no request, run at load to build kernels and to see what memory they take; all goes to the null block."""

from collections.abc import Iterator

import torch

from engine.device.forward_batch import BatchBuilder, ForwardBatch
from engine.sampling_params import SamplingParams
from engine.scheduling.block_manager import NULL_BLOCK
from engine.scheduling.scheduled import Scheduled
from engine.scheduling.sequence import Sequence

GREEDIEST = SamplingParams(
    max_tokens=1, temperature=1.0, top_p=0.9, top_k=64, frequency_penalty=0.5, repetition_penalty=1.1, logprobs=20
)
"""What takes the most memory to sample."""


def largest_step(*, max_num_seqs: int, max_batched_tokens: int, block_size: int) -> list[Scheduled]:
    """Rows of as many sequences and tokens as one step may hold, sampled in the costliest way."""
    num_seqs = min(max_num_seqs, max_batched_tokens)
    length = max_batched_tokens // num_seqs
    return [_row(slot, length, block_size) for slot in range(num_seqs)]


def plain_step(tokens: int, *, max_context: int, block_size: int) -> list[Scheduled]:
    """Rows of a step of one of `StepForms.plain`: one that decodes, then prompts, no longer than sequences may be."""
    return [_row(slot, length, block_size) for slot, length in enumerate(_lengths(tokens, max_context))]


def _lengths(tokens: int, longest: int) -> Iterator[int]:
    """Of the rows: one token, and as few more rows as the others need."""
    yield 1
    for done in range(1, tokens, longest):
        yield min(longest, tokens - done)


def _row(slot: int, length: int, block_size: int) -> Scheduled:
    sequence = Sequence(request_id=slot, prompt_token_ids=[0] * length, params=GREEDIEST, seed=slot, max_len=length + 1)
    sequence.slot = slot
    sequence.block_table = [NULL_BLOCK] * -(-length // block_size)
    return Scheduled(sequence, length)


def on_device(
    rows: list[Scheduled], *, num_slots: int, block_size: int, device: torch.device
) -> tuple[ForwardBatch, torch.Tensor]:
    """A step that no other hears of, and room for the newest tokens of `num_slots` sequences, int64."""
    max_blocks = max(len(row.sequence.block_table) for row in rows)
    slots = max(num_slots, len(rows))
    builder = BatchBuilder(max_num_seqs=slots, max_blocks=max_blocks, block_size=block_size, device=device)
    return builder.build(rows), builder.last_tokens
