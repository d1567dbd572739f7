"""Patches of a tower that come one by one (Qwen): a product where transformers has a convolution of one place."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class PatchProduct(nn.Module):
    """Stands in the place of a convolution whose inputs are as large as its kernel, with its parameters.

    On a CPU the convolution takes many times as long (`python -m bench.tower`).
    """

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """patches `[N, channels, frames, side, side]`; `[N, outputs]`."""
        assert patches.shape[1:] == self.weight.shape[1:], "a patch is of the kernel's size"
        return F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)


def replace_patches(model: Any) -> int:
    """Put ours in the place of each such convolution, for good; how many there were."""
    count = 0
    for module in list(model.modules()):
        proj = getattr(module, "proj", None)
        if type(module).__name__.endswith("PatchEmbed") and isinstance(proj, nn.Conv3d):
            module.proj, count = PatchProduct(proj), count + 1
    return count
