"""Modules whose weights stay quantised as a GGUF file has them, and a model filled with those of a file.

On a CPU a step with few rows is the reading of weights, so they are kept as small as they came. What stands in a format
that is not known to the kernels, or in a module that does more than a linear, is unpacked to fp32.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from engine.cache import Progress
from engine.errors import ModelLoadError
from engine.kernels.cpu_quantized import QuantizedProduct, QuantizedWeight, Room, pack, packed_size
from engine.weights.gguf_config import convert_tensor, converted_rows, target_name
from engine.weights.gguf_file import GGUFFile, TensorInfo


class QuantizedLinear(nn.Module):
    """A linear with weights in one or several formats; several where linears were joined."""

    def __init__(self, weights: list[QuantizedWeight], bias: torch.Tensor | None) -> None:
        super().__init__()
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.product = QuantizedProduct(weights, None if self.bias is None else self.bias.data)
        self.in_features, self.out_features = self.product.size, self.product.outputs

    @property
    def weights(self) -> list[QuantizedWeight]:
        """In the order of the outputs."""
        return self.product.weights

    @classmethod
    def joined(cls, linears: "list[QuantizedLinear]") -> "QuantizedLinear":
        """One linear of several that read the same input; the weights are not copied."""
        biases = [linear.bias for linear in linears if linear.bias is not None]
        weights = [weight for linear in linears for weight in linear.weights]
        return cls(weights, torch.cat([bias.data for bias in biases]) if biases else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x fp32 `[..., in]` → fp32 `[..., out]`."""
        out = self.product(x.reshape(-1, self.in_features).contiguous())
        return out.view(*x.shape[:-1], self.out_features)


class QuantizedEmbedding(nn.Module):
    """An embedding whose rows are unpacked when they are asked for."""

    def __init__(self, blocks: np.ndarray, number: int, dim: int) -> None:
        """blocks uint8 `[vocabulary, bytes of a row]` of GGUF's format `number`."""
        super().__init__()
        self._blocks, self._number = blocks, number
        self.num_embeddings, self.dim, self.nbytes = len(blocks), dim, blocks.nbytes

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """input_ids int64 `[...]` → fp32 `[..., dim]`."""
        from gguf import GGMLQuantizationType, dequantize

        rows = dequantize(self._blocks[input_ids.flatten().numpy()], GGMLQuantizationType(self._number))
        return torch.from_numpy(rows).view(*input_ids.shape, self.dim)


def quantized_bytes(file: GGUFFile) -> int:
    """Memory that the weights of a GGUF file take when they are kept as they are."""
    return sum(
        packed_size(info.ggml_type, info.shape[0], info.shape[1]) or 4 * int(np.prod(info.shape))
        if len(info.shape) == 2
        else 4 * int(np.prod(info.shape))
        for info in file.tensors.values()
    )


def round_activations(model: nn.Module, bits: int) -> None:
    """Have the products with a model's quantised weights round what they are given to 8 or 16 bits."""
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.product.round_to(bits)


def fill_quantized(model: Any, file: GGUFFile, directory: Path, progress: Progress) -> None:
    """Give a model without parameters those of a GGUF file, quantised where that is possible, else in fp32.

    `directory` holds the configuration that the model was made of. Raises `ModelLoadError`.
    """
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    filled = _Filling(model, file, config)
    try:
        for done, name in enumerate(file.tensors):
            progress("loading the weights", done / len(file.tensors))
            filled.take(name)
        filled.tie()
    except (ValueError, NotImplementedError) as error:
        raise ModelLoadError(
            f"{file.path.name} holds tensors that cannot be read: {error}",
            hint="The file may be incomplete, or quantised in a way that is not known.",
        ) from error
    absent = sorted(name for name, parameter in model.named_parameters() if parameter.is_meta)
    if absent:
        raise ModelLoadError(f"{file.path.name} lacks the tensor of {absent[0]}", hint="The file may be incomplete.")


class _Filling:
    def __init__(self, model: Any, file: GGUFFile, config: dict[str, Any]) -> None:
        self._model, self._file, self._config, self._room = model, file, config, Room()

    def take(self, name: str) -> None:
        """Put one tensor where it belongs, with its bias if it is a linear's."""
        target = target_name(self._file, name)
        if target is None:
            return
        place, _, kind = target.rpartition(".")
        module = self._module(place, name)
        if self._is_quantized(module, self._file.tensors[name]):
            if kind == "weight":
                self._set(place, self._quantized(module, name))
            return
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            return  # its bias, taken with the weight
        self._fill(module, kind, name)

    def tie(self) -> None:
        """Give the head the embedding's weights where the file has but one of the two."""
        head = self._model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or not head.weight.is_meta:
            return
        embedding = self._model.get_input_embeddings()
        if isinstance(embedding, QuantizedEmbedding):
            self._model.set_output_embeddings(self._quantized(head, "token_embd.weight"))
        else:
            head.weight = embedding.weight

    def _module(self, place: str, name: str) -> nn.Module:
        try:
            found: nn.Module = self._model.get_submodule(place)
        except AttributeError:
            raise ModelLoadError(
                f"{self._file.path.name} holds the tensor {name!r}, which the model has no place for"
            ) from None
        return found

    def _is_quantized(self, module: nn.Module, info: TensorInfo) -> bool:
        if type(module) is nn.Linear and len(info.shape) == 2:
            return packed_size(info.ggml_type, *info.shape) > 0
        return type(module) is nn.Embedding and packed_size(info.ggml_type, *info.shape) > 0

    def _quantized(self, module: nn.Module, name: str) -> nn.Module:
        info = self._file.tensors[name]
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.shape != info.shape:
            raise self._misshapen(name)
        blocks = converted_rows(self._file, name, self._config)
        if type(module) is nn.Embedding:
            return QuantizedEmbedding(blocks, info.ggml_type, info.shape[1])
        packed = pack(np.ascontiguousarray(blocks), info.ggml_type, info.shape[1], self._room)
        bias = name.removesuffix("weight") + "bias"
        found = convert_tensor(self._file, bias, self._config) if bias in self._file.tensors else None
        if name != "token_embd.weight":
            self._file.forget(name)
        return QuantizedLinear([packed], None if found is None else torch.from_numpy(found[1].copy()))

    def _fill(self, module: nn.Module, kind: str, name: str) -> None:
        converted = convert_tensor(self._file, name, self._config)
        assert converted is not None
        parameter = getattr(module, kind, None)
        if not isinstance(parameter, nn.Parameter) or parameter.shape != converted[1].shape:
            raise self._misshapen(name)
        values = torch.from_numpy(np.array(converted[1], dtype=np.float32))
        setattr(module, kind, nn.Parameter(values, requires_grad=False))

    def _misshapen(self, name: str) -> ModelLoadError:
        return ModelLoadError(f"{self._file.path.name} has the tensor {name!r} in a shape that the model has not")

    def _set(self, place: str, module: nn.Module) -> None:
        parent, _, leaf = place.rpartition(".")
        setattr(self._model.get_submodule(parent), leaf, module)
