"""Attention whose keys and values come of one latent vector a token (MLA), done on the latents themselves.

DeepSeek-V2 (arXiv 2405.04434, section 2.1) keeps R numbers of a token, `kv_lora_rank`, of which each head's keys and
values are linear functions, and P numbers that position turns, which belong to the keys of all heads. transformers'
classes expand both for every head before they attend, so that a cache of what is attended to would take 4,997,120
bytes a token in DeepSeek-R1. But the product of a query with an expanded key is that of the query, times the
expansion, with the latent; and a weighted sum of expanded values is the expansion of the weighted sum of latents. So
queries go into the space of the latents once, and there is one KV head, whose keys are R + P numbers and whose values
are the first R of these: 70,272 bytes.

A pair of query and key then takes 2 * (2 * R + P) operations a head, in DeepSeek-R1 278,528 for all, where expanded
ones take 81,920, and 33.5 million for each token of the context that is expanded. So for a sequence with more than some
170 new tokens in a step, expanding its context anew would be faster. That is not done: it would be a second way
through every backend.

Attention itself, and positions, are transformers' own: three linears, one method and three numbers of its module are
replaced. Where a module is not of the shape that is known here it is left alone, and every head's keys are kept.
"""

import logging
from functools import partial
from typing import Any

import torch
from torch import nn

from engine.device.ranks import Ranks
from engine.models.fp8 import EXPANSION, Fp8Linear, whole_rows
from engine.models.fp8_blocks import BlockFp8Linear
from engine.models.fusion import Undo, apply_checked, replace_child
from engine.models.load_check import CHECK_TOKENS, FOREIGN
from engine.models.loaded import LoadedModel
from engine.models.quantized import QuantizedLinear
from engine.models.sample import attending_by
from engine.models.split import RowParallel
from engine.models.surgery import tolerance_of

logger = logging.getLogger(__name__)

LINEARS = (nn.Linear, Fp8Linear, BlockFp8Linear, QuantizedLinear, RowParallel)


class LatentExpansion(nn.Module):
    """What makes keys (N numbers without a position) and values (V numbers) of latents, for H heads.

    It is never called: queries and what was attended to go through one half of its weight each.
    """

    def __init__(self, weight: torch.Tensor, heads: int, key_dim: int) -> None:
        """Of a weight `[H * (N + V), R]`, whose memory is used as it is; `key_dim` is N."""
        super().__init__()
        self.weight = nn.Parameter(weight.view(heads, -1, weight.shape[1]), requires_grad=False)
        self.heads, self.rank, self.key_dim = heads, weight.shape[1], key_dim

    def into_latents(self, queries: torch.Tensor) -> torch.Tensor:
        """Queries `[T, H, N]` of keys as queries `[T, H, R]` of latents."""
        return torch.bmm(queries.transpose(0, 1), self.weight[:, : self.key_dim]).transpose(0, 1)

    def values(self, latents: torch.Tensor) -> torch.Tensor:
        """The values `[T, H, V]` of latents `[T, H, R]`, one for each head."""
        return torch.bmm(latents.transpose(0, 1), self.weight[:, self.key_dim :].transpose(1, 2)).transpose(0, 1)


class LatentQueries(nn.Module):
    """Stands in the linear that gives queries: what does not turn with position goes into the space of the latents."""

    def __init__(self, linear: nn.Module, expansion: LatentExpansion) -> None:
        super().__init__()
        self.linear = linear
        self._expansion = [expansion]  # in a list, so that it is not registered as a submodule twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x `[..., in]` → `[..., H * (R + P)]`."""
        expansion, queries = self._expansion[0], self.linear(x)
        heads = queries.view(-1, expansion.heads, queries.shape[-1] // expansion.heads)
        still, turned = heads.tensor_split([expansion.key_dim], dim=-1)
        return torch.cat((expansion.into_latents(still), turned), dim=-1).view(*x.shape[:-1], -1)


class LatentOutput(nn.Module):
    """Stands in the linear behind attention: makes values of the latents that were attended to."""

    def __init__(self, linear: nn.Module, expansion: LatentExpansion) -> None:
        super().__init__()
        self.linear = linear
        self._expansion = [expansion]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x `[..., H * R]` → `[..., out]`."""
        expansion = self._expansion[0]
        values = expansion.values(x.view(-1, expansion.heads, expansion.rank))
        return torch.as_tensor(self.linear(values.reshape(*x.shape[:-1], -1)))


def attend_on_latents(loaded: LoadedModel, ranks: Ranks | None = None) -> list[str]:
    """Have a model's attention done on latents, where it has them and its outputs stay where they were.

    To be called before its layers are probed, by all `ranks`. Returns what the operator should know of it.
    """
    model: Any = loaded.model
    if getattr(loaded.text_config, "kv_lora_rank", None) is None:
        return []
    decoder = model.get_decoder()
    token_ids = torch.arange(CHECK_TOKENS, device=model.device)[None] % loaded.vocab_size

    def outcome() -> torch.Tensor:
        return torch.as_tensor(decoder(input_ids=token_ids, use_cache=False).last_hidden_state[0].float())

    name, tolerance, count = "attention on latents", tolerance_of(model, model.dtype), None
    if any(_has_latents(module) for module in decoder.modules()):
        with torch.inference_mode(), attending_by(decoder, "eager"), whole_rows(model):
            change = partial(replace_attention, model)
            try:
                before = outcome()
            except FOREIGN:
                return []  # what its layers are probed with, which comes next, says so
            count, _ = apply_checked(name, change, before, outcome, tolerance=tolerance, ranks=ranks)
    if count:
        logger.info("%d layers attend on latents", count)
        return []
    return ["the KV cache holds keys and values of every head: this attention is not known to run on its latents"]


def replace_attention(model: Any, undo: Undo) -> int:
    """Change each module of attention that is of the shape that is known; the number changed."""
    found = [module for module in model.get_decoder().modules() if _has_latents(module)]
    for attention in found:
        _replace(attention, model.dtype, undo)
    return len(found)


def _has_latents(module: Any) -> bool:
    """Whether an attention makes keys and values by `expand_kv`, and its queries by one linear, without a bias.

    Not where an indexer looks at queries and keys as well.
    """
    if not callable(getattr(module, "expand_kv", None)) or hasattr(module, "indexer"):
        return False
    expansion = getattr(module, EXPANSION, None)
    linears = (expansion, getattr(module, _query_linear(module), None), getattr(module, "o_proj", None))
    return all(type(linear) in LINEARS for linear in linears) and getattr(expansion, "bias", None) is None


def _query_linear(attention: Any) -> str:
    return "q_proj" if getattr(attention, "q_b_proj", None) is None else "q_b_proj"


def _replace(attention: Any, dtype: torch.dtype, undo: Undo) -> None:
    query = _query_linear(attention)
    weight = _weight_of(getattr(attention, EXPANSION), dtype, attention.kv_a_layernorm.weight.device)
    expansion = LatentExpansion(weight, attention.num_heads, attention.qk_nope_head_dim)
    replace_child(attention, EXPANSION, expansion, undo)
    replace_child(attention, query, LatentQueries(getattr(attention, query), expansion), undo)
    replace_child(attention, "o_proj", LatentOutput(attention.o_proj, expansion), undo)
    numbers = {
        "qk_nope_head_dim": expansion.rank,
        "qk_head_dim": expansion.rank + attention.qk_rope_head_dim,
        "num_key_value_groups": expansion.heads,  # which transformers' own attention functions repeat the one head for
    }
    for name, number in numbers.items():
        undo.append(partial(setattr, attention, name, getattr(attention, name)))
        setattr(attention, name, number)
    attention.expand_kv = _joined
    undo.append(partial(delattr, attention, "expand_kv"))


def _weight_of(linear: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The weight `[out, in]` of a linear: that itself, or unpacked, what its product makes of each unit vector."""
    if type(linear) is nn.Linear:
        return linear.weight.data
    with torch.inference_mode(), whole_rows(linear):
        return torch.as_tensor(linear(torch.eye(linear.in_features, device=device)).t().to(dtype).contiguous())


def _joined(latents: torch.Tensor, turned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """In the place of `expand_kv`: keys `[1, 1, T, R + P]` of latents and what turns, and values, which are in them."""
    keys = torch.cat((latents, turned), dim=-1)
    return keys, keys[..., : latents.shape[-1]]
