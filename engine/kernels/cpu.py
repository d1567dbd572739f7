"""The CPU's small operations in C.

Without a compiler there are no kernels (`load_kernels` returns None) and plain torch does the same work, slower. The
tests hold each kernel against torch.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch

from engine.kernels.build import built

MAX_HEAD_DIM = 256
MAX_QUERY_DIM = 576
"""Of heads that `paged_decode` takes: a latent of 512 numbers, and 64 that turn with position."""
MAX_GROUP = 64
"""Heads of a KV head that `attend_prompt` takes."""

_SUFFIX = {torch.bfloat16: "bf16", torch.float32: "f32"}
_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SIGNATURES: dict[str, list[Any]] = {
    "add_rms_norm": [_POINTER] * 4 + [_INT] * 2 + [_FLOAT],
    "silu_mul": [_POINTER] * 2 + [_INT] * 2,
    "rope_and_write": [_POINTER] * 6 + [_INT] * 5,
    "paged_decode": [_POINTER] * 2 + [_INT] * 2 + [_POINTER] * 3 + [_INT] + [_POINTER] + [_INT] * 8 + [_FLOAT] * 2,
}


class _Prompt(ctypes.Structure):
    _fields_ = [
        ("q", _POINTER), ("k_cache", _POINTER), ("v_cache", _POINTER), ("table", _POINTER),
        *((name, _INT) for name in (
            "token_stride", "head_stride", "queries", "context", "heads", "kv_heads", "k_dim", "v_dim", "num_slots",
            "block_size", "window",
        )),
        ("scale", _FLOAT), ("softcap", _FLOAT),
    ]  # fmt: skip


class CpuKernels:
    """The built functions for one dtype. Tensors are contiguous and on the CPU unless said otherwise."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        def function(name: str) -> Callable[..., None]:
            found: ctypes._NamedFuncPointer = getattr(library, f"{name}_{_SUFFIX[dtype]}")
            found.argtypes, found.restype = _SIGNATURES[name], None
            return found

        self._add_rms_norm = function("add_rms_norm")
        self._silu_mul = function("silu_mul")
        self._rope_and_write = function("rope_and_write")
        self._paged_decode = function("paged_decode")
        self._dtype = dtype
        self._attend_prompt = library.attend_prompt
        self._attend_prompt.argtypes, self._attend_prompt.restype = [_POINTER, ctypes.POINTER(_Prompt)], None

    def add_rms_norm(
        self, residual: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """Add delta `[T, dim]` to residual fp32 `[T, dim]` in place; the residual's RMSNorm, `[T, dim]` like weight."""
        rows, dim = residual.shape
        out = torch.empty(rows, dim, dtype=weight.dtype)
        added = delta.data_ptr() if delta is not None else None
        self._add_rms_norm(out.data_ptr(), residual.data_ptr(), added, weight.data_ptr(), rows, dim, eps)
        return out

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up of gate_up `[T, 2 * dim]`, as `[T, dim]`."""
        rows, double = gate_up.shape
        out = gate_up.new_empty(rows, double // 2)
        self._silu_mul(out.data_ptr(), gate_up.data_ptr(), rows, double // 2)
        return out

    def rope_and_write(
        self,
        qkv: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        slots: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        heads: int,
    ) -> None:
        """Rotate q in qkv `[T, (heads + 2 * KV) * D]` in place; write rotated k, and v, to slots int64 `[T]`.

        cos and sin are fp32 `[T, D]`, caches `[KV, num_slots, D]`.
        """
        kv_heads, num_slots, dim = k_cache.shape
        self._rope_and_write(
            qkv.data_ptr(), cos.data_ptr(), sin.data_ptr(), slots.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(),
            qkv.shape[0], heads, kv_heads, dim, num_slots,
        )  # fmt: skip

    def paged_decode(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        block_tables: torch.Tensor,
        seqlens_k: torch.Tensor,
        *,
        block_size: int,
        scaling: float,
        softcap: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Attention of one query per sequence: q `[D, H, Dk]` with any strides but the last, → `[D, H, Dv]`.

        Of a `LayerCache` that `is_latent` the values begin where its keys do; the kernel sees that by their address.
        block_tables int32 `[D, max_blocks]`, seqlens_k int32 `[D]`; see `AttentionBackend.run` for the rest.
        """
        rows, heads, k_dim = q.shape
        kv_heads, num_slots, v_dim = v_cache.shape
        assert q.stride(2) == 1 and k_dim <= MAX_QUERY_DIM and v_dim <= MAX_QUERY_DIM
        out = q.new_empty(rows, heads, v_dim)
        self._paged_decode(
            out.data_ptr(), q.data_ptr(), q.stride(0), q.stride(1), k_cache.data_ptr(), v_cache.data_ptr(),
            block_tables.data_ptr(), block_tables.stride(0), seqlens_k.data_ptr(), rows, heads, kv_heads, k_dim, v_dim,
            num_slots, block_size, window or 0, scaling, softcap or 0.0,
        )  # fmt: skip
        return out

    def takes_prompts(self, heads: int, k_cache: torch.Tensor, v_cache: torch.Tensor) -> bool:
        """Whether `attend_prompt` is for these; in bf16 a processor may have faster products, which torch knows."""
        kv_heads, _, v_dim = v_cache.shape
        return self._dtype == torch.float32 and takes_prompts(heads // kv_heads, k_cache.shape[2], v_dim)

    def attend_prompt(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        table: torch.Tensor,
        *,
        context_len: int,
        block_size: int,
        scaling: float,
        softcap: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Attention of a sequence's newest tokens: q fp32 `[n, H, Dk]` with any strides but the last, → `[n, H, Dv]`.

        table int32 `[max_blocks]` has the sequence's blocks, context_len is its length, those tokens included. For what
        `takes_prompts` says. See `AttentionBackend.run` for the rest.
        """
        queries, heads, k_dim = q.shape
        kv_heads, num_slots, v_dim = v_cache.shape
        assert self.takes_prompts(heads, k_cache, v_cache) and q.stride(2) == 1 and table.stride(0) == 1
        out = q.new_empty(queries, heads, v_dim)
        prompt = _Prompt(
            q.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(), table.data_ptr(), q.stride(0), q.stride(1), queries,
            context_len, heads, kv_heads, k_dim, v_dim, num_slots, block_size, window or 0, scaling, softcap or 0.0,
        )  # fmt: skip
        self._attend_prompt(out.data_ptr(), prompt)
        return out


def takes_prompts(group: int, k_dim: int, v_dim: int) -> bool:
    """Whether prompts are attended with in tiles where a KV head has so many query heads, of such widths."""
    return group <= MAX_GROUP and v_dim % 8 == 0 and max(v_dim, k_dim) <= MAX_HEAD_DIM


def load_kernels(dtype: torch.dtype) -> CpuKernels | None:
    """The kernels for a dtype, built if need be; None where that is not possible."""
    library = built("cpu.c")
    return CpuKernels(library, dtype) if library is not None and dtype in _SUFFIX else None
