"""Whole decoder layers with quantised weights on a CPU, in one call each."""

import ctypes
from dataclasses import dataclass

import torch

from engine.kernels.cpu import takes_prompts
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


class _Stretch(ctypes.Structure):
    _fields_ = [
        ("first", _INT), ("rows", _INT), ("tables", _POINTER), ("lens", _POINTER), ("table_stride", _INT),
        ("context_len", _INT),
    ]  # fmt: skip


class _Step(ctypes.Structure):
    _fields_ = [
        ("cos", _POINTER), ("sin", _POINTER), ("slots", _POINTER), ("stretches", ctypes.POINTER(_Stretch)),
        ("rows", _INT), ("num_stretches", _INT), ("num_slots", _INT), ("block_size", _INT),
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive rows of a step that attend in one way: each on its own, or as the newest tokens of one sequence."""

    rows: slice
    tables: torch.Tensor
    """int32 `[rows, max_blocks]`; of a sequence `[max_blocks]`."""
    lens: torch.Tensor | None
    """int32 `[rows]`: what each sees, itself included, before any window; None of a sequence."""
    context_len: int = 0
    """Of a sequence: its tokens, those of the rows included."""

    def of_c(self) -> _Stretch:
        """As `Stretch` of cpu_layer.c, which points into the tensors."""
        assert self.tables.stride(-1) == 1 and (self.lens is not None or self.tables.dim() == 1)
        lens = None if self.lens is None else self.lens.data_ptr()
        stride = self.tables.stride(0) if self.lens is not None else 0
        count = self.rows.stop - self.rows.start
        return _Stretch(self.rows.start, count, self.tables.data_ptr(), lens, stride, self.context_len)


class LayerStep:
    """What all layers of a step have in common: angles, places in the cache, and who attends to what."""

    def __init__(
        self,
        cos: torch.Tensor,
        sin: torch.Tensor,
        slots: torch.Tensor,
        stretches: list[Stretch],
        *,
        num_slots: int,
        block_size: int,
    ) -> None:
        """cos and sin are fp32 `[T, D]`, slots int64 `[T]`; the stretches have all T rows, at most `MAX_ROWS`.

        Threads take the stretches' work in their order, so those of prompts stand first.
        """
        assert len(slots) <= MAX_ROWS and cos.is_contiguous() and sin.is_contiguous()
        self._kept = cos, sin, slots, stretches
        """What the structure points into."""
        of_c = (_Stretch * len(stretches))(*[stretch.of_c() for stretch in stretches])
        self.rows, self.num_slots = len(slots), num_slots
        self.of_c = _Step(
            cos.data_ptr(), sin.data_ptr(), slots.data_ptr(), of_c, len(slots), len(stretches), num_slots, block_size,
        )  # fmt: skip


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
        self.takes_prompts = takes_prompts(parts.heads // self._kv_heads, head_dim, head_dim)
        """Whether stretches may be those of a sequence."""
        self._layer = _Layer(
            input_norm=parts.input_norm.data_ptr(), mlp_norm=parts.mlp_norm.data_ptr(),
            **{name: ctypes.pointer(getattr(parts, name).of_c) for name in ("qkv", "output", "gate_up", "down")},
            heads=parts.heads, kv_heads=self._kv_heads, head_dim=head_dim, window=parts.window or 0,
            input_eps=parts.input_eps, mlp_eps=parts.mlp_eps, scaling=parts.scaling,
        )  # fmt: skip

    def __call__(self, residual: torch.Tensor, step: LayerStep, k_cache: torch.Tensor, v_cache: torch.Tensor) -> None:
        """Change residual fp32 `[T, dim]` as the layer does; write to the caches, fp32 `[KV, num_slots, D]`."""
        assert k_cache.shape == (self._kv_heads, step.num_slots, self._layer.head_dim)
        assert len(residual) == step.rows and residual.is_contiguous()
        if self._function(self._layer, step.of_c, residual.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr()):
            raise MemoryError("no memory for the activations of a step")
