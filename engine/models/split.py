"""A model of which each rank has a part: what stands where ranks must speak, and how a model is made to have it.

The parts themselves are `engine.models.cuts`'. They are linears like those of a whole model, so that whatever is done
to a model when it is loaded can be done to one rank's part of it as well.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from engine.device.ranks import Ranks
from engine.kernels.reference import Rounded
from engine.models.cuts import CROSS
from engine.sizing.split import Split, vocabulary_rows

ROWS = ("o_proj", "down_proj")
"""Linears that take what was divided: what each rank makes of its part is summed up."""


class RowParallel(nn.Module):
    """A linear, of whose inputs this rank has some. A bias of the whole is in rank 0's."""

    def __init__(self, linear: nn.Module, ranks: Ranks) -> None:
        super().__init__()
        self.linear = linear
        self._ranks = ranks

    def forward(self, x: torch.Tensor | Rounded) -> torch.Tensor:
        """This rank's inputs `[..., in / ranks]`, as its linear takes them → the whole's outputs `[..., out]`."""
        return self._ranks.total(self.linear(x))


class Summed(nn.Module):
    """A module, all of whose outputs are to be summed up: experts, and those that all tokens share."""

    def __init__(self, module: nn.Module, ranks: Ranks) -> None:
        super().__init__()
        self.module = module
        self._ranks = ranks

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states `[1, T, dim]` → the same of the whole module."""
        return self._ranks.total(self.module(hidden_states).contiguous())


class VocabEmbedding(nn.Module):
    """An input embedding, of whose tokens this rank knows some."""

    def __init__(self, embedding: Any, ranks: Ranks) -> None:
        super().__init__()
        embedding.padding_idx = None  # it matters in training alone, and may be a token of another rank
        self.embedding = embedding
        self._rows = len(embedding.weight)
        self._first = ranks.rank * self._rows
        self._ranks = ranks

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """input_ids `[1, T]` → `[1, T, dim]`."""
        rows = input_ids - self._first
        known = (rows >= 0) & (rows < self._rows)
        found = self.embedding(rows.clamp(0, self._rows - 1))
        return self._ranks.total(found.masked_fill_(~known.unsqueeze(-1), 0))


class VocabHead(nn.Module):
    """The output head, of whose tokens this rank scores some."""

    def __init__(self, linear: Any, vocab_size: int, ranks: Ranks) -> None:
        super().__init__()
        self.lm_head = linear  # by this name what is done to heads finds it
        self.out_features = vocab_size
        self._ranks = ranks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x `[1, R, dim]` → the logits of all tokens `[1, R, vocab_size]`."""
        # Contiguous, also where the last rank has rows too many: kernels go by the width of the vocabulary.
        return self._ranks.joined(self.lm_head(x)[0])[None, :, : self.out_features].contiguous()


def adapt(model: Any, split: Split, ranks: Ranks, vocab_size: int) -> None:
    """Make a model, whose parameters are this rank's parts, compute what the whole one does, with the other ranks.

    The configuration of its decoder has this rank's numbers of heads afterwards; the model's own stays the whole's.
    """
    decoder = model.get_decoder()
    local = decoder.config = local_config(decoder.config, split)
    for linear in model.modules():
        if type(linear) is nn.Linear:
            linear.out_features, linear.in_features = linear.weight.shape
    for name, module in decoder.named_modules():
        if hasattr(module, "o_proj") and CROSS not in name.split("."):
            _adapt_attention(module, local, split)
    for parent, name in list(_sums(decoder)):
        setattr(parent, name, (RowParallel if name in ROWS else Summed)(getattr(parent, name), ranks))
    decoder.embed_tokens = VocabEmbedding(decoder.embed_tokens, ranks)
    model.lm_head = VocabHead(model.lm_head, vocab_size, ranks)
    assert model.get_output_embeddings() is model.lm_head
    assert len(model.lm_head.lm_head.weight) == vocabulary_rows(vocab_size, ranks.size)


def local_config(config: Any, split: Split) -> Any:
    """A configuration with this rank's number of heads."""
    local = copy.copy(config)
    if getattr(config, "kv_lora_rank", None) is None:
        local.head_dim = getattr(config, "head_dim", None) or config.hidden_size // split.heads
    local.num_attention_heads, local.num_key_value_heads = split.local_heads, split.local_kv_heads
    return local


def _adapt_attention(attention: Any, local: Any, split: Split) -> None:
    attention.config = local
    numbers = {
        "num_heads": split.local_heads,
        "num_attention_heads": split.local_heads,
        "num_key_value_heads": split.local_kv_heads,
        "num_key_value_groups": split.local_heads // split.local_kv_heads,
    }
    for name, number in numbers.items():
        if hasattr(attention, name):
            setattr(attention, name, number)


def _sums(decoder: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Where ranks add up what each has: modules of experts as a whole, else each linear of `ROWS`."""
    inside: set[nn.Module] = set()
    for parent in decoder.modules():
        for name, child in parent.named_children():
            if hasattr(child, "experts"):
                inside |= set(child.modules())
                yield parent, name
            elif name == CROSS:
                inside |= set(child.modules())
            elif name in ROWS and parent not in inside:
                yield parent, name
