"""How much memory a step takes beside the weights, so that the KV cache can have the rest.

On a CUDA device the largest step is run once: as many tokens and sequences as there may be, sampled with all that
sampling can ask for. On a CPU nobody can say what belongs to whom, and a share of what is free is left alone.
"""

from collections.abc import Callable

import torch

from engine.sampling_params import SamplingParams
from engine.scheduling.block_manager import NULL_BLOCK
from engine.scheduling.scheduled import Scheduled
from engine.scheduling.sequence import Sequence

GREEDIEST = SamplingParams(
    max_tokens=1, temperature=1.0, top_p=0.9, top_k=64, frequency_penalty=0.5, repetition_penalty=1.1, logprobs=20
)
"""What takes the most memory to sample."""


def largest_step(*, max_num_seqs: int, max_batched_tokens: int, block_size: int) -> list[Scheduled]:
    """Rows of as many sequences and tokens as one step may hold; all their blocks are the null block."""
    num_seqs = min(max_num_seqs, max_batched_tokens)
    length = max_batched_tokens // num_seqs
    rows = []
    for slot in range(num_seqs):
        sequence = Sequence(
            request_id=slot, prompt_token_ids=[0] * length, params=GREEDIEST, seed=slot, max_len=length + 1
        )
        sequence.slot = slot
        sequence.block_table = [NULL_BLOCK] * -(-length // block_size)
        rows.append(Scheduled(sequence, length))
    return rows


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """The most memory that `step` holds at any moment, beside what is held already; 0 on a CPU, where nobody counts."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - held
    torch.cuda.empty_cache()
    return peak
