"""What rounding to FP8 adds to the outputs of a linear on average, so that it can be taken off again.

Rounding moves each weight, and each input, by something; and some inputs of a linear are far from zero in every token.
So a part of what an output is off by is the same for all tokens, and a bias takes it off, at no cost (Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction", 2019). How much it is, is found by letting the
model read a text before it is quantised.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from engine.kernels.reference import quantize_rows

SAMPLE = Path(__file__).parent / "sample.txt"
"""Prose, talk, programs, tables and several languages: what models are asked for."""
WINDOW = 512
MAX_WINDOWS = 8


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


@torch.inference_mode()
def input_means(model: Any, directory: Path) -> InputMeans:
    """Of each linear of a model's decoder, over a text; none where the directory has no tokenizer.json."""
    tokenizer = directory / "tokenizer.json"
    means: InputMeans = {}
    if not tokenizer.exists():
        return means
    decoder = model.get_decoder()
    hooks = [
        module.register_forward_pre_hook(_note(means.setdefault(module, InputMean())))
        for module in decoder.modules()
        if type(module) is nn.Linear
    ]
    try:
        with _own_attention(model):
            for window in _windows(tokenizer, model.get_input_embeddings().weight.shape[0]):
                decoder(input_ids=torch.tensor([window], device=model.device), use_cache=False)
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


def _windows(tokenizer: Path, vocab_size: int) -> Iterator[list[int]]:
    """Pieces of the sample, each behind the token that begins a text where the tokenizer has one."""
    encoder = Tokenizer.from_file(str(tokenizer))
    first = encoder.encode("").ids
    ids = encoder.encode(SAMPLE.read_text(encoding="utf-8"), add_special_tokens=False).ids
    ids = [token for token in ids if token < vocab_size]
    for start in range(0, min(len(ids), MAX_WINDOWS * WINDOW), WINDOW):
        yield first + ids[start : start + WINDOW]


@contextmanager
def _own_attention(model: Any) -> Iterator[None]:
    """Let transformers attend by itself, without a cache, while the block runs."""
    ours = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(ours)
