"""Checkpoints whose linears are stored in FP8, in the three layouts that are published, read without their packages.

Whether a linear is in FP8 is what the files hold: one on the checkpoint's list of exceptions (`ignore`,
`modules_to_not_convert`, `ignored_layers`) is stored unquantised, and stays so. Scales for activations, which some
checkpoints bring, are left aside: each token gets a scale of its own. So are scales for the KV cache.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from engine.errors import ModelLoadError
from engine.models.fp8 import Fp8Linear, fits

_UNUSED = ("input_scale", "input_scale_ub", "activation_scale", "k_scale", "v_scale", "q_scale", "output_scale")
_FOREIGN = (torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


@dataclass(frozen=True, slots=True)
class Fp8Layout:
    """How a checkpoint stores the scale of an FP8 weight `[out, in]`, by which its numbers are multiplied."""

    scale_name: str
    """Of the tensor that stands beside `weight`."""
    block: tuple[int, int] | None
    """Sides of the blocks that have a scale each; None: a scale for each output, or one for all."""


def read_layout(quantization: dict[str, Any]) -> Fp8Layout:
    """The layout that `quantization_config` of a config.json describes.

    Raises ModelLoadError, by name, for what is not FP8 of dense linears.
    """
    method = str(quantization.get("quant_method", "an unnamed method"))
    if method == "compressed-tensors":
        return _compressed_tensors(quantization)
    if method == "fbgemm_fp8":
        return Fp8Layout("weight_scale", None)
    if method == "fp8":
        if quantization.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
            raise _refusal(f"fp8 in the format {quantization['fmt']}")
        block = quantization.get("weight_block_size")
        return Fp8Layout("weight_scale_inv" if block else "weight_scale", _block(block))
    raise _refusal(method)


def _compressed_tensors(quantization: dict[str, Any]) -> Fp8Layout:
    stored = str(quantization.get("format"))
    groups = quantization.get("config_groups") or {}
    blocks = set()
    for group in groups.values():
        weights = group.get("weights") or {}
        kind = f"compressed-tensors of {weights.get('num_bits')}-bit {weights.get('type')}"
        if (weights.get("num_bits"), weights.get("type")) != (8, "float"):
            raise _refusal(kind)
        if weights.get("strategy") not in ("channel", "tensor", "block"):
            raise _refusal(f"{kind} numbers by {weights.get('strategy')}")
        blocks.add(_block(weights.get("block_structure") if weights["strategy"] == "block" else None))
    sparsity = (quantization.get("sparsity_config") or {}).get("format", "dense")
    if stored not in ("float-quantized", "naive-quantized") or sparsity != "dense" or len(blocks) != 1:
        raise _refusal(f"compressed-tensors in the format {stored}, {sparsity}")
    return Fp8Layout("weight_scale", blocks.pop())


def _block(sides: Any) -> tuple[int, int] | None:
    if sides is None:
        return None
    if not isinstance(sides, list | tuple) or len(sides) != 2 or not all(isinstance(n, int) and n > 0 for n in sides):
        raise _refusal(f"FP8 in blocks of {sides!r}")
    return int(sides[0]), int(sides[1])


def _refusal(what: str) -> ModelLoadError:
    return ModelLoadError(
        f"the checkpoint is quantised with {what}, which is not read here",
        hint="Take unquantised weights, or FP8 (compressed-tensors, fp8 or fbgemm_fp8), or a GGUF file.",
    )


class Fp8Files:
    """The tensors of a checkpoint, by name, on the device they are to be on."""

    def __init__(self, files: list[Path], layout: Fp8Layout, device: torch.device) -> None:
        self._layout = layout
        self._handles: list[Any] = [safe_open(file, framework="pt", device=str(device)) for file in files]
        self._holder: dict[str, Any] = {name: handle for handle in self._handles for name in handle.keys()}  # noqa: SIM118
        self.used: set[str] = set()

    def take(self, name: str) -> torch.Tensor:
        """A tensor, which counts as used. Raises ModelLoadError if there is none of that name."""
        if name not in self._holder:
            raise ModelLoadError(
                f"the checkpoint lacks {name}",
                hint="config.json and the weights do not belong together, or the download is incomplete.",
            )
        self.used.add(name)
        tensor: torch.Tensor = self._holder[name].get_tensor(name)
        if tensor.dtype in _FOREIGN:
            raise _refusal(str(tensor.dtype).removeprefix("torch."))
        return tensor

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self._holder

    def unused(self) -> list[str]:
        """Tensors that nobody took, but for scales that are left aside."""
        return sorted(name for name in set(self._holder) - self.used if not name.endswith(_UNUSED))

    def scale_of(self, module: str, shape: torch.Size) -> torch.Tensor:
        """The scales of a module's weight, fp32: `[out, 1]`, or spread to the weight's shape where blocks have them."""
        name = f"{module}.{self._layout.scale_name}"
        if not self.has(name) and self.has(f"{module}.weight_scale_inv"):  # one scale for all under its other name
            name = f"{module}.weight_scale_inv"
        scale = self.take(name).float()
        rows, columns = shape
        if self._layout.block is None:
            if scale.numel() not in (1, rows):
                raise ModelLoadError(f"the checkpoint has {name} in the shape {list(scale.shape)}")
            return scale.reshape(-1, 1).expand(rows, 1).contiguous()
        height, width = self._layout.block
        if scale.shape != (-(-rows // height), -(-columns // width)):
            raise ModelLoadError(f"the checkpoint has {name} in the shape {list(scale.shape)}")
        return scale.repeat_interleave(height, 0)[:rows].repeat_interleave(width, 1)[:, :columns]


def fill(model: nn.Module, files: Fp8Files, dtype: torch.dtype, *, keep: bool, told: Callable[[float], None]) -> None:
    """Give a model, whose parameters are on the meta device, those of a checkpoint, in `dtype`.

    With `keep`, linears that are stored in FP8 become `Fp8Linear`s: of the numbers as they are where a scale belongs to
    outputs, else quantised anew by output. Without it, they are unpacked. `told` hears the fraction done. Raises
    ModelLoadError.
    """
    config: Any = model.config
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
    places = list(_places(model))
    for number, (parent, name, path) in enumerate(places):
        told(number / len(places))
        if not files.has(path) and path in tied:
            continue  # the model ties it afterwards
        tensor = files.take(path)
        wanted = getattr(parent, name)
        if tensor.shape != wanted.shape:
            raise ModelLoadError(f"the checkpoint has {path} in another shape, {list(tensor.shape)}")
        if tensor.dtype == torch.float8_e4m3fn:
            _place_fp8(model, path.removesuffix(".weight"), tensor, files, dtype, keep=keep)
        else:
            _set(parent, name, tensor.to(dtype))
    if unknown := files.unused():
        raise ModelLoadError(f"the checkpoint has {unknown[0]}, and the model has no place for it")


def _places(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Module, name and path of each parameter; of a linear the bias comes first, so that a weight finds it there."""
    for prefix, module in model.named_modules():
        for name, _ in sorted(module.named_parameters(recurse=False)):
            yield module, name, f"{prefix}.{name}" if prefix else name


def _place_fp8(
    model: nn.Module, path: str, numbers: torch.Tensor, files: Fp8Files, dtype: torch.dtype, *, keep: bool
) -> None:
    linear: Any = model.get_submodule(path)
    if type(linear) is not nn.Linear:
        raise ModelLoadError(f"the checkpoint has {path} in FP8, and only linears are read so")
    scale = files.scale_of(path, numbers.shape)
    if not keep or not fits(numbers):
        _set(linear, "weight", (numbers.float() * scale).to(dtype))
        return
    if scale.shape[1] == 1:
        new = Fp8Linear(numbers, scale[:, 0], linear.bias)
    else:
        new = Fp8Linear.quantized(numbers.float() * scale, linear.bias)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new)


def _set(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    setattr(module, name, nn.Parameter(tensor, requires_grad=False))
