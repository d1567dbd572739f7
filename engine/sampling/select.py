"""Which sampler a device has."""

from typing import TYPE_CHECKING

import torch

from engine.sampling.sampler import Sampler

if TYPE_CHECKING:
    from engine.sampling.device_sampler import DeviceSampler


def make_sampler(
    device: torch.device, *, max_num_seqs: int, vocab_size: int, has_triton: bool
) -> "Sampler | DeviceSampler":
    """The kernels' on a GPU, and on a CPU where Triton interprets them (`has_triton`), else plain torch's."""
    if device.type == "cpu" and not has_triton:
        return Sampler(max_num_seqs=max_num_seqs, vocab_size=vocab_size, device=device)
    from engine.sampling.device_sampler import DeviceSampler  # an installation for CPUs has no triton

    return DeviceSampler(max_num_seqs=max_num_seqs, vocab_size=vocab_size, device=device)
