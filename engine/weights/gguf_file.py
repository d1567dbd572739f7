"""Reading a GGUF file: its metadata, and its tensors as float32 arrays.

The layout is that of the GGUF specification, versions 2 and 3: a header, typed key-value pairs, a table of tensors,
then their bytes, aligned. The `gguf` package knows the quantised block formats and unpacks them; its own reader is not
used because it takes two seconds over a vocabulary of 50,000 entries, and this one 0.1.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import ModelLoadError

MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: `shape` is in torch's order, `offset` counts from the start of the data."""

    shape: tuple[int, ...]
    ggml_type: int
    offset: int


class GGUFFile:
    """An open GGUF file. `metadata` holds every key-value pair, `tensors` the table of tensors by name."""

    def __init__(self, path: Path) -> None:
        """Read all but the tensors. Raises `ModelLoadError` for anything that is not a sound GGUF file."""
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        try:
            with path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._data_start = self._read_header()
        except (OSError, ValueError, struct.error, KeyError, MemoryError, OverflowError) as error:
            raise ModelLoadError(
                f"{path.name} is not a GGUF file that can be read: {error}",
                hint="The file may be incomplete or of another format; fetch it again.",
            ) from error

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture, which also prefixes its keys."""
        return str(self.metadata["general.architecture"])

    def field(self, key: str, default: Any = None) -> Any:
        """A value under the architecture's prefix: `field("block_count")` is `llama.block_count`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def tensor(self, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """One tensor unpacked to float32, in torch's order of dimensions."""
        from gguf import GGMLQuantizationType, dequantize

        kind = GGMLQuantizationType(self.tensors[name].ggml_type)
        raw = self.raw(name).view({"F32": np.float32, "F16": np.float16}.get(kind.name, np.uint8))
        values: np.ndarray[Any, np.dtype[np.float32]] = dequantize(raw, kind)
        return values.reshape(self.tensors[name].shape)

    def raw(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The bytes of one tensor `[..., bytes of a row]`, in the file's own memory, which is not to be written to.

        Raises `ValueError` if the file ends before it does.
        """
        info = self.tensors[name]
        start, size = self._extent(info)
        return np.frombuffer(self._bytes, np.uint8, size, start).reshape(*info.shape[:-1], -1)

    def forget(self, name: str) -> None:
        """Let the pages of a tensor go; they are read anew when they are looked at again."""
        start, size = self._extent(self.tensors[name])
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        whole = (start + size - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if whole > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._bytes.madvise(mmap.MADV_DONTNEED, first, whole)

    def _extent(self, info: TensorInfo) -> tuple[int, int]:
        """Where a tensor begins in the file, and its bytes."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        block_elements, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(info.ggml_type)]
        row_bytes = info.shape[-1] // block_elements * block_bytes
        return self._data_start + info.offset, int(np.prod(info.shape[:-1], dtype=np.int64)) * row_bytes

    def _read_header(self) -> int:
        """Fill `metadata` and `tensors`; returns the offset of the tensors' data."""
        if self._bytes[:4] != MAGIC:
            raise ValueError("it does not begin with the letters GGUF")
        version, num_tensors, num_pairs = struct.unpack_from("<IQQ", self._bytes, 4)
        if version not in (2, 3):
            raise ValueError(f"its format version is {version}, only 2 and 3 are known")
        position = 24
        for _ in range(num_pairs):
            key, position = self._string(position)
            (kind,) = struct.unpack_from("<I", self._bytes, position)
            self.metadata[key], position = self._value(position + 4, kind)
        for _ in range(num_tensors):
            name, position = self._string(position)
            (num_dims,) = struct.unpack_from("<I", self._bytes, position)
            dims = struct.unpack_from(f"<{num_dims}Q", self._bytes, position + 4)
            position += 4 + 8 * num_dims
            ggml_type, offset = struct.unpack_from("<IQ", self._bytes, position)
            position += 12
            self.tensors[name] = TensorInfo(tuple(reversed(dims)), ggml_type, offset)
        if "general.architecture" not in self.metadata:
            raise ValueError("it names no architecture")
        alignment = int(self.metadata.get("general.alignment", _DEFAULT_ALIGNMENT))
        return -(-position // alignment) * alignment

    def _string(self, position: int) -> tuple[str, int]:
        (length,) = struct.unpack_from("<Q", self._bytes, position)
        end = position + 8 + length
        # A few published vocabularies hold bytes that are not UTF-8; such a token must not stop the whole file.
        return self._bytes[position + 8 : end].decode("utf-8", "replace"), end

    def _value(self, position: int, kind: int) -> tuple[Any, int]:
        if kind == _STRING:
            return self._string(position)
        if kind == _ARRAY:
            return self._array(position)
        code = "<" + _SCALARS[kind]
        return struct.unpack_from(code, self._bytes, position)[0], position + struct.calcsize(code)

    def _array(self, position: int) -> tuple[list[Any], int]:
        kind, count = struct.unpack_from("<IQ", self._bytes, position)
        position += 12
        if kind in _SCALARS:
            code = f"<{count}{_SCALARS[kind]}"
            return list(struct.unpack_from(code, self._bytes, position)), position + struct.calcsize(code)
        if kind == _STRING:
            return self._strings(position, count)
        items = []
        for _ in range(count):
            item, position = self._value(position, kind)
            items.append(item)
        return items, position

    def _strings(self, position: int, count: int) -> tuple[list[str], int]:
        """As `_string` reads them one by one; vocabularies have hundreds of thousands."""
        content, length_at, items = self._bytes, struct.Struct("<Q").unpack_from, []
        for _ in range(count):
            start = position + 8
            position = start + length_at(content, position)[0]
            items.append(content[start:position].decode("utf-8", "replace"))
        return items, position
