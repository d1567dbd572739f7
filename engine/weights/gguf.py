"""A GGUF file made into what transformers reads: a description of its model alone, or with converted weights.

Where weights stay as the file has them (`engine.models.quantized`), only the small files are written:

    <cache>/described/<digest>/  config.json  generation_config.json  tokenizer.json  tokenizer_config.json  complete

Elsewhere a file is converted, once, into a directory that is loaded as any other model:

    <cache>/converted/<digest>/  config.json  generation_config.json  tokenizer.json  tokenizer_config.json
                                 model.safetensors (bf16), or parts of it and their index  complete

The digest covers this converter's version, the file's name and its content. A conversion is written beside its place
and moved there whole under a lock, so it is either complete or not there, and two processes that convert the same file
wait for one another.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.cache import Progress, cache_dir
from engine.errors import ModelLoadError
from engine.weights.gguf_config import build_config, convert_tensor
from engine.weights.gguf_file import MAGIC, GGUFFile
from engine.weights.gguf_tokenizer import build_tokenizer, end_token_ids

if TYPE_CHECKING:
    import torch

_CONVERTER_VERSION = 1
_MARKER = "complete"
# Reading all of a large file would take longer than loading it, so of those only parts are hashed, and their date.
_HASHED_WHOLE_BYTES = 1 << 29
_CHUNK_BYTES = 1 << 20
_NUM_SAMPLES = 64
_PART_BYTES = 1 << 30
"""Unpacked weights are written once there are so many of them, so that a large file needs no large memory."""
_BF16_BYTES = 2
# Newer files carry their maker's sampling defaults.
_SAMPLING_KEYS = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_p": "top_p",
    "general.sampling.top_k": "top_k",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def converted_dir(path: Path) -> Path:
    """Where the conversion of this file lies or will lie."""
    return cache_dir() / "converted" / _digest(path)


def _digest(path: Path) -> str:
    """Of this converter's version, and the file's name and content."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"{_CONVERTER_VERSION}\0{path.name}\0{size}\0".encode())
    with path.open("rb") as file:
        if size <= _HASHED_WHOLE_BYTES:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        else:
            digest.update(f"{path.stat().st_mtime_ns}\0".encode())
            for start in range(0, size, max(_CHUNK_BYTES, size // _NUM_SAMPLES)):
                file.seek(start)
                digest.update(file.read(_CHUNK_BYTES))
    return digest.hexdigest()[:32]


def is_converted(path: Path) -> bool:
    """Whether a complete conversion of this file lies in the cache."""
    return (converted_dir(path) / _MARKER).exists()


def num_weights(path: Path) -> int:
    """How many numbers the tensors of a file hold. Raises `ModelLoadError`."""
    return sum(math.prod(info.shape) for info in GGUFFile(path).tensors.values())


def convert(path: Path, progress: Progress) -> Path:
    """Directory of the converted model; converts on the first call. Raises `ModelLoadError`.

    Needs the size of the bf16 weights on disk, which is looked for first, and some 3 GiB of memory however large the
    file is. Calls `progress` with the share of the tensors that are unpacked.
    """
    return _made(path, converted_dir(path), lambda target: _convert_into(path, target, progress))


def describe_model(path: Path) -> Path:
    """Directory of the file's configuration and tokenizer, without weights. Raises `ModelLoadError`."""

    def write(target: Path) -> None:
        with _whole_or_not(target) as work:
            _write_description(GGUFFile(path), work)

    return _made(path, cache_dir() / "described" / _digest(path), write)


def _made(path: Path, target: Path, make: Callable[[Path], None]) -> Path:
    """The directory, made under a lock if it is not there. Raises `ModelLoadError`."""
    from filelock import FileLock
    from safetensors import SafetensorError

    if (target / _MARKER).exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not (target / _MARKER).exists():
                make(target)
    except (OSError, SafetensorError) as error:
        raise ModelLoadError(
            f"cannot write the converted weights of {path.name}: {getattr(error, 'strerror', None) or error}",
            hint=_disk_hint(),
        ) from error
    return target


def _disk_hint() -> str:
    return f"Free some disk space or set HEADRACE_CACHE to another directory than {cache_dir()}."


def _convert_into(path: Path, target: Path, progress: Progress) -> None:
    needed, free = num_weights(path) * _BF16_BYTES, shutil.disk_usage(target.parent).free
    if needed > free:
        raise ModelLoadError(
            f"the converted weights of {path.name} need {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free",
            hint=_disk_hint(),
        )
    with _whole_or_not(target) as work:
        progress(f"converting {path.name}", 0.0)
        file = GGUFFile(path)
        config = _write_description(file, work)
        _write_weights(file, config, work, progress)
    progress(f"converting {path.name}", 1.0)


@contextlib.contextmanager
def _whole_or_not(target: Path) -> Iterator[Path]:
    """A directory to write in, which stands at `target` with its marker when the block has ended well."""
    for left in target.parent.glob(f"{target.name}.*/"):  # of a process that was killed: whoever has the lock is alone
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        yield work
        (work / _MARKER).touch()
        shutil.rmtree(target, ignore_errors=True)
        os.replace(work, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(work)


def _write_description(file: GGUFFile, directory: Path) -> dict[str, Any]:
    """Write all but the weights; the configuration."""
    config = build_config(file)
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", _generation_config(file, config))
    tokenizer, tokenizer_config = build_tokenizer(file)
    _write_json(directory / "tokenizer.json", tokenizer)
    _write_json(directory / "tokenizer_config.json", tokenizer_config)
    return config


def _write_weights(file: GGUFFile, config: dict[str, Any], directory: Path, progress: Progress) -> None:
    """Unpack all tensors into `model.safetensors`, or into numbered parts with an index as the hub has them."""
    from safetensors.torch import save_file

    names: list[list[str]] = []
    for part in _parts(file, config, progress):
        save_file(part, directory / f"part-{len(names)}", metadata={"format": "pt"})
        names.append(list(part))
    if len(names) == 1:
        (directory / "part-0").rename(directory / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, part_names in enumerate(names):
        part_file = f"model-{number + 1:05}-of-{len(names):05}.safetensors"
        (directory / f"part-{number}").rename(directory / part_file)
        weight_map |= dict.fromkeys(part_names, part_file)
    _write_json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _parts(file: GGUFFile, config: dict[str, Any], progress: Progress) -> Iterator[dict[str, "torch.Tensor"]]:
    """The converted tensors in bf16, in portions of about `_PART_BYTES`."""
    import torch

    part: dict[str, torch.Tensor] = {}
    size = 0
    try:
        for done, name in enumerate(file.tensors):
            if (converted := convert_tensor(file, name, config)) is not None:
                tensor = torch.from_numpy(np.require(converted[1], requirements="W")).to(torch.bfloat16)
                part[converted[0]] = tensor
                size += tensor.nbytes
            progress(f"converting {file.path.name}", done / len(file.tensors))
            if size >= _PART_BYTES:
                yield part
                part, size = {}, 0
    except (ValueError, NotImplementedError) as error:
        raise ModelLoadError(
            f"{file.path.name} holds tensors that cannot be unpacked: {error}",
            hint="The file may be incomplete, or quantised in a way that is not known.",
        ) from error
    if part:
        yield part


def _generation_config(file: GGUFFile, config: dict[str, Any]) -> dict[str, Any]:
    sampling = {name: file.metadata[key] for key, name in _SAMPLING_KEYS.items() if key in file.metadata}
    return {
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": end_token_ids(file),
        "pad_token_id": config["pad_token_id"],
        **({"do_sample": True} | sampling if sampling else {}),
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
