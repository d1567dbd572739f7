"""What rounding to FP8 adds to the outputs of a linear on average, so that it can be taken off again.

Rounding moves each weight, and each input, by something; and some inputs of a linear are far from zero in every token.
So a part of what an output is off by is the same for all tokens, and a bias takes it off, at no cost (Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction", 2019). How much it is, is found by letting the
model read a text before it is quantised.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.kernels.reference import quantize_rows
from engine.models.sample import read_sample


@dataclass(slots=True)
class InputMean:
    """The mean of a linear's inputs over all tokens, as they are and as FP8 has them."""

    count: int = 0
    exact: torch.Tensor | float = 0.0
    """fp32 `[in]`"""
    rounded: torch.Tensor | float = 0.0
    """fp32 `[in]`"""

    def add(self, rows: torch.Tensor) -> None:
        """Take in rows `[T, in]`."""
        numbers, scales = quantize_rows(rows)
        share = len(rows) / (self.count + len(rows))
        self.exact = self.exact + share * (rows.float().mean(0) - self.exact)
        self.rounded = self.rounded + share * ((numbers.float() * scales).mean(0) - self.rounded)
        self.count += len(rows)


InputMeans = dict[nn.Module, InputMean]


def input_means(model: Any, directory: Path) -> InputMeans:
    """Of each linear of a model's decoder, over a text; none where the directory has no tokenizer.json."""
    means: InputMeans = {module: InputMean() for module in model.get_decoder().modules() if type(module) is nn.Linear}
    hooks = [module.register_forward_pre_hook(_note(mean)) for module, mean in means.items()]
    try:
        read_sample(model, directory, "eager")
    finally:
        for hook in hooks:
            hook.remove()
    return {module: mean for module, mean in means.items() if mean.count}


def offset(weight: torch.Tensor, numbers: torch.Tensor, scale: torch.Tensor, mean: InputMean) -> torch.Tensor:
    """fp32 `[out]`: what the outputs of a weight `[out, in]` lack on average when it is e4m3 numbers times scale."""
    return weight.float() @ mean.exact - (numbers.float() @ mean.rounded) * scale


def _note(mean: InputMean) -> Any:
    def hook(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        mean.add(arguments[0].reshape(-1, arguments[0].shape[-1]))

    return hook
