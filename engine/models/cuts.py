"""Which part of each of a model's tensors belongs to a rank.

What gives heads, or numbers inside an MLP, is cut by its outputs; what takes them is cut by its inputs, so that ranks
have to speak only once behind attention and once behind an MLP. What a parameter is, its name says: transformers'
classes of one shape of layer use the same names. Norms, routers, and what makes latents, are every rank's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from engine.sizing.split import Split, vocabulary_rows

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of a tensor that a rank has."""

    dim: int
    ranges: Ranges
    """From and to along that dimension; the pieces lie one behind the other."""
    padding: int = 0
    """Zeros behind them, where the parts of other ranks are longer."""
    is_shared: bool = True
    """False: the tensor is added to what several ranks sum up, and is zero but on rank 0."""

    def shape_of(self, whole: torch.Size) -> torch.Size:
        """The part's shape."""
        sizes = list(whole)
        sizes[self.dim] = sum(stop - start for start, stop in self.ranges) + self.padding
        return torch.Size(sizes)

    def take(self, whole: torch.Tensor) -> torch.Tensor:
        """The part of a tensor that is there, as a tensor of its own."""
        return self.collect(lambda start, stop: whole.narrow(self.dim, start, stop - start))

    def collect(self, piece: Callable[[int, int], torch.Tensor]) -> torch.Tensor:
        """The part, of pieces that `piece` reads."""
        found = [piece(start, stop) for start, stop in self.ranges]
        if self.padding:
            shape = list(found[0].shape)
            shape[self.dim] = self.padding
            found.append(found[0].new_zeros(shape))
        if len(found) == 1:
            part = found[0].clone(memory_format=torch.contiguous_format)
        elif found[0].dtype == torch.float8_e4m3fn:  # not every device joins the dtype itself
            part = torch.cat([one.view(torch.uint8) for one in found], self.dim).view(torch.float8_e4m3fn)
        else:
            part = torch.cat(found, self.dim)
        return part if self.is_shared else part.zero_()


CROSS = "cross_attn"
"""Attention to images, which rank 0 does alone (`engine.models.cross_attention`)."""
_HEADS = frozenset({"q_proj", "q_b_proj", "kv_b_proj"})
_KV_HEADS = frozenset({"k_proj", "v_proj"})
_INNER = frozenset({"gate_proj", "up_proj"})
_ROWS = frozenset({"o_proj", "down_proj"})
_VOCABULARY = frozenset({"embed_tokens", "lm_head"})


class Cutter:
    """Knows one rank's part of everything in a decoder."""

    def __init__(self, split: Split, rank: int, prefix: str) -> None:
        """`prefix` is the path of the decoder in the model. What is not under it, but for the head, is not cut."""
        self._split, self._rank, self._prefix = split, rank, prefix

    def share(self, model: nn.Module) -> float:
        """Of a model's numbers, how many the rank has: more than its part of those that are cut."""
        mine = whole = 0
        for path, parameter in model.named_parameters():
            cut = self.cut(path, parameter.shape)
            whole += parameter.numel()
            mine += parameter.numel() if cut is None else cut.shape_of(parameter.shape).numel()
        return mine / whole

    def cut(self, path: str, shape: torch.Size) -> Cut | None:
        """The part of the parameter at a path, which has this shape in the whole model; None for all of it."""
        words = path.split(".")
        if (not path.startswith(self._prefix) and "lm_head" not in words) or CROSS in words:
            return None
        if words[-1] in ("gate_up_proj", "down_proj"):  # those of all experts, in one tensor `[E, out, in]`
            return self._doubled(1, shape) if words[-1] == "gate_up_proj" else self._even(2, shape)
        if len(words) < 2:
            return None
        return self._of_linear(words[-2], words[-1], shape)

    def _of_linear(self, name: str, kind: str, shape: torch.Size) -> Cut | None:
        if name in _VOCABULARY:
            return self._vocabulary(shape)
        if name in _HEADS or name in _INNER:
            return self._even(0, shape)
        if name in _KV_HEADS:
            return self._kv(shape)
        if name == "qkv_proj":
            return self._qkv(shape)
        if name == "gate_up_proj":
            return self._doubled(0, shape)
        if name in _ROWS:
            return self._even(1, shape) if kind == "weight" else self._once(shape)
        return None

    def _once(self, shape: torch.Size) -> Cut | None:
        """A bias that is added to the sum: rank 0 adds it to its own part."""
        return None if self._rank == 0 else Cut(0, ((0, shape[0]),), is_shared=False)

    def _even(self, dim: int, shape: torch.Size) -> Cut:
        size = shape[dim] // self._split.ranks
        return Cut(dim, ((self._rank * size, (self._rank + 1) * size),))

    def _doubled(self, dim: int, shape: torch.Size) -> Cut:
        """Gate and up, one behind the other."""
        half = shape[dim] // 2
        size = half // self._split.ranks
        start = self._rank * size
        return Cut(dim, ((start, start + size), (half + start, half + start + size)))

    def _kv(self, shape: torch.Size) -> Cut:
        return Cut(0, (self._kv_range(0, shape[0] // self._split.kv_heads),))

    def _qkv(self, shape: torch.Size) -> Cut:
        """Queries, keys and values, one behind the other (Phi-3)."""
        split = self._split
        dim = shape[0] // (split.heads + 2 * split.kv_heads)
        first = self._rank * split.local_heads * dim
        keys = split.heads * dim
        values = keys + split.kv_heads * dim
        return Cut(
            0, ((first, first + split.local_heads * dim), self._kv_range(keys, dim), self._kv_range(values, dim))
        )

    def _kv_range(self, offset: int, dim: int) -> tuple[int, int]:
        start = offset + self._split.first_kv_head(self._rank) * dim
        return start, start + self._split.local_kv_heads * dim

    def _vocabulary(self, shape: torch.Size) -> Cut:
        size = vocabulary_rows(shape[0], self._split.ranks)
        start = min(self._rank * size, shape[0])
        stop = min(start + size, shape[0])
        return Cut(0, ((start, stop),), padding=size - (stop - start))
