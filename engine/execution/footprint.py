"""How much memory a step takes beside the weights, so that the KV cache can have the rest.

On a CUDA device the largest step is run once: as many tokens and sequences as there may be, sampled with all that
sampling can ask for. On a CPU nobody can say what belongs to whom, and a share of what is free is left alone.
"""

from collections.abc import Callable

import torch


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
