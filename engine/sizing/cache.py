"""The KV cache in numbers: what a token takes over all layers, and what a device leaves to it."""

from collections.abc import Mapping
from dataclasses import dataclass

CUDA_SHARE = 0.97
"""Of what the weights and a step leave; the rest is for holes between tensors."""
CUDA_ROUNDING = 2 * 2**20
"""What torch's allocator rounds the size of a large tensor up to."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Widths of one layer's keys and values, per token."""

    num_kv_heads: int
    k_dim: int
    v_dim: int
    is_latent: bool = False
    """Whether the values are the first `v_dim` numbers of the keys, which alone are stored."""

    @property
    def elements(self) -> int:
        """Numbers stored per token."""
        return self.num_kv_heads * (self.k_dim if self.is_latent else self.k_dim + self.v_dim)

    @property
    def num_tensors(self) -> int:
        """Tensors that they are stored in."""
        return 1 if self.is_latent else 2


def bytes_per_token(shapes: Mapping[int, LayerShape], itemsize: int) -> int:
    """Memory of one token's keys and values over all layers, of so many bytes each."""
    return sum(shape.elements for shape in shapes.values()) * itemsize


def overhead_bytes(shapes: Mapping[int, LayerShape], itemsize: int, block_size: int, *, is_cuda: bool) -> int:
    """What a cache takes beside its blocks: the null block, and on CUDA what each of its tensors is rounded up by."""
    rounding = sum(shape.num_tensors for shape in shapes.values()) * CUDA_ROUNDING if is_cuda else 0
    return bytes_per_token(shapes, itemsize) * block_size + rounding
