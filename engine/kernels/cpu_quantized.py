"""Products with weights that stay quantised as a GGUF file has them, on a CPU.

Activations are rounded to 16 bits with a scale for each 32 of them, so a product is within
`2**-16 * max|x| * sum|w|` of the exact one, block by block, and beyond that within fp32's rounding: finer than bf16
activations by some 2^7. Rounded to 8 bits, as llama.cpp does, it is within `2**-8 * max|x| * sum|w|` and up to twice as
fast. The weights themselves are met exactly.
"""

import contextlib
import ctypes
import mmap
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from engine.kernels.build import built

FORMATS = {2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K"}
"""GGUF's numbers of the formats that are known here."""
ACTIVATION_BITS = (8, 16)
"""What activations can be rounded to."""

_LINE = 64
_LARGE_PAGE = 1 << 21
_ROOM_BYTES = 32 << 20
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


class _Part(ctypes.Structure):
    _fields_ = [("packed", _POINTER), ("outputs", _INT), ("format", _INT)]


class LinearOfC(ctypes.Structure):
    """`Linear` of cpu_quantized.c."""

    _fields_ = [
        ("parts", ctypes.POINTER(_Part)),
        ("num_parts", _INT),
        ("size", _INT),
        ("bias", _POINTER),
        ("bits", _INT),
    ]


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight `[outputs, size]` in the layout of cpu_quantized.c."""

    packed: torch.Tensor
    """uint8 `[bytes]`."""
    outputs: int
    size: int
    format: int
    """A key of `FORMATS`."""


@cache
def quantized_library() -> ctypes.CDLL | None:
    """The functions of cpu_quantized.c and cpu_layer.c; None where they cannot be built."""
    library = built("cpu_layer.c")
    if library is not None:
        library.packed_bytes.argtypes, library.packed_bytes.restype = [_INT] * 3, _INT
        library.pack_quantized.argtypes, library.pack_quantized.restype = [_POINTER] * 2 + [_INT] * 3, None
        library.quantized_linear.argtypes = [_POINTER] * 2 + [ctypes.POINTER(LinearOfC), _INT]
        library.quantized_linear.restype = ctypes.c_int
    return library


def is_available() -> bool:
    """Whether this machine can compute with quantised weights; builds what does it on the first call."""
    return quantized_library() is not None


def packed_size(number: int, outputs: int, size: int) -> int:
    """Bytes that a weight takes in memory; 0 where the format, or the size in it, is not known here."""
    library = quantized_library()
    return library.packed_bytes(number, outputs, size) if library is not None and number in FORMATS else 0


class Room:
    """Memory for the weights of a model, in large pages where the system has them.

    Weights are read from end to end at every step, and half of the time of that can be looking up small pages.
    """

    def __init__(self) -> None:
        self._left = np.empty(0, np.uint8)

    def take(self, size: int) -> torch.Tensor:
        """uint8 `[size]`, which begins at a line of the cache."""
        aligned = -(-size // _LINE) * _LINE
        if len(self._left) < aligned:
            self._left = _pages(max(aligned, _ROOM_BYTES))
        taken, self._left = self._left[:size], self._left[aligned:]
        return torch.from_numpy(taken)


def _pages(size: int) -> np.ndarray:
    """Fresh memory, uint8 `[at least size]`, that begins at a large page."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.empty(size, np.uint8)
    memory = mmap.mmap(-1, size + _LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    return whole[-whole.ctypes.data % _LARGE_PAGE :]


def pack(blocks: np.ndarray, number: int, size: int, room: Room) -> QuantizedWeight:
    """Lay out a weight: blocks uint8 `[outputs, bytes of a row]`, contiguous, in format `number`."""
    library = quantized_library()
    assert library is not None and blocks.flags.c_contiguous and blocks.dtype == np.uint8
    outputs = len(blocks)
    packed = room.take(packed_size(number, outputs, size))
    assert len(packed), f"weights of format {number} with {size} inputs are not known"
    library.pack_quantized(packed.data_ptr(), blocks.ctypes.data, number, outputs, size)
    return QuantizedWeight(packed, outputs, size, number)


class QuantizedProduct:
    """The product with one or several weights of the same size, whose outputs stand beside one another."""

    def __init__(self, weights: list[QuantizedWeight], bias: torch.Tensor | None = None) -> None:
        """bias fp32 `[outputs]`, contiguous."""
        library = quantized_library()
        assert library is not None and len({weight.size for weight in weights}) == 1
        assert bias is None or (bias.dtype == torch.float32 and bias.is_contiguous())
        self.weights, self.bias = weights, bias
        self.size, self.outputs = weights[0].size, sum(weight.outputs for weight in weights)
        self._function = library.quantized_linear
        parts = (_Part * len(weights))(
            *[_Part(weight.packed.data_ptr(), weight.outputs, weight.format) for weight in weights]
        )
        self.of_c = LinearOfC(parts, len(weights), self.size, None if bias is None else bias.data_ptr(), 16)
        """Points into what this object keeps."""

    def round_to(self, bits: int) -> None:
        """From now on round activations to `bits`, 8 or 16; at first it is 16."""
        assert bits in ACTIVATION_BITS
        self.of_c.bits = bits

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x fp32 `[rows, size]`, contiguous → fp32 `[rows, outputs]`."""
        rows, size = x.shape
        assert x.dtype == torch.float32 and x.is_contiguous() and size == self.size
        out = torch.empty(rows, self.outputs)
        if self._function(out.data_ptr(), x.data_ptr(), self.of_c, rows):
            raise MemoryError("no memory for the activations of a step")
        return out
