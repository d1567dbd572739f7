"""Whole decoder layers with quantised weights on a CPU, in one call each."""

import ctypes
from dataclasses import dataclass

import torch

from engine.kernels.cpu_quantized import LinearOfC, QuantizedProduct, quantized_library

MAX_ROWS = 64
"""Rows of a step that a layer takes at once."""

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _Layer(ctypes.Structure):
    _fields_ = [
        ("input_norm", _POINTER), ("mlp_norm", _POINTER),
        *((name, ctypes.POINTER(LinearOfC)) for name in ("qkv", "output", "gate_up", "down")),
        ("heads", _INT), ("kv_heads", _INT), ("head_dim", _INT), ("window", _INT),
        ("input_eps", _FLOAT), ("mlp_eps", _FLOAT), ("scaling", _FLOAT),
    ]  # fmt: skip


class _Step(ctypes.Structure):
    _fields_ = [
        ("cos", _POINTER), ("sin", _POINTER), ("slots", _POINTER), ("tables", _POINTER), ("lens", _POINTER),
        ("rows", _INT), ("table_stride", _INT), ("num_slots", _INT), ("block_size", _INT),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedLayerParts:
    """What a layer of the Llama shape is made of."""

    qkv: QuantizedProduct
    output: QuantizedProduct
    gate_up: QuantizedProduct
    down: QuantizedProduct
    input_norm: torch.Tensor
    """fp32 `[dim]`, as the other."""
    mlp_norm: torch.Tensor
    input_eps: float
    mlp_eps: float
    heads: int
    scaling: float
    window: int | None


class QuantizedLayer:
    """Attention and gated MLP around a residual stream, RMSNorm before each, SiLU, whole heads turned."""

    def __init__(self, parts: QuantizedLayerParts) -> None:
        library = quantized_library()
        assert library is not None
        self._function = library.quantized_layer
        self._function.argtypes = [ctypes.POINTER(_Layer), ctypes.POINTER(_Step), _POINTER, _POINTER, _POINTER]
        self._function.restype = ctypes.c_int
        self._parts = parts
        """What the structure points into."""
        head_dim = parts.output.size // parts.heads
        self._kv_heads = (parts.qkv.outputs // head_dim - parts.heads) // 2
        self._layer = _Layer(
            input_norm=parts.input_norm.data_ptr(), mlp_norm=parts.mlp_norm.data_ptr(),
            **{name: ctypes.pointer(getattr(parts, name).of_c) for name in ("qkv", "output", "gate_up", "down")},
            heads=parts.heads, kv_heads=self._kv_heads, head_dim=head_dim, window=parts.window or 0,
            input_eps=parts.input_eps, mlp_eps=parts.mlp_eps, scaling=parts.scaling,
        )  # fmt: skip

    def __call__(
        self,
        residual: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        slots: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        block_tables: torch.Tensor,
        seqlens_k: torch.Tensor,
        *,
        block_size: int,
    ) -> None:
        """Change residual fp32 `[T, dim]` as the layer does, of at most `MAX_ROWS` tokens; write their keys and values.

        cos and sin are fp32 `[T, D]`, slots int64 `[T]`, caches fp32 `[KV, num_slots, D]`, block_tables int32
        `[T, max_blocks]`, seqlens_k int32 `[T]`: what each token sees, itself included, before any window.
        """
        kv_heads, num_slots, dim = k_cache.shape
        rows = len(residual)
        assert rows <= MAX_ROWS and residual.is_contiguous()
        assert (kv_heads, dim) == (self._kv_heads, self._layer.head_dim)
        assert cos.is_contiguous() and sin.is_contiguous() and block_tables.stride(1) == 1
        step = _Step(
            cos.data_ptr(), sin.data_ptr(), slots.data_ptr(), block_tables.data_ptr(), seqlens_k.data_ptr(),
            rows, block_tables.stride(0), num_slots, block_size,
        )  # fmt: skip
        if self._function(self._layer, step, residual.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr()):
            raise MemoryError("no memory for the activations of a step")
