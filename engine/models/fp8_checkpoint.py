"""Checkpoints whose linears are stored in FP8, in the three layouts that are published, read without their packages.

Whether a linear is in FP8 is what the files hold: one on the checkpoint's list of exceptions (`ignore`,
`modules_to_not_convert`, `ignored_layers`) is stored unquantised, and stays so. Scales for activations, which some
checkpoints bring, are left aside: each token gets a scale of its own. So are scales for the KV cache.
"""

from dataclasses import dataclass
from typing import Any

import torch

from engine.errors import ModelLoadError
from engine.kernels.reference import FP8_BLOCK, quantize_blocks
from engine.models.cuts import Cut
from engine.models.reading import Reader

_UNUSED = ("input_scale", "input_scale_ub", "activation_scale", "k_scale", "v_scale", "q_scale", "output_scale")
FOREIGN = (torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
"""Other kinds of FP8, which are not read."""


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
            raise refusal_of(f"fp8 in the format {quantization['fmt']}")
        block = quantization.get("weight_block_size")
        return Fp8Layout("weight_scale_inv" if block else "weight_scale", _block(block))
    raise refusal_of(method)


def _compressed_tensors(quantization: dict[str, Any]) -> Fp8Layout:
    stored = str(quantization.get("format"))
    groups = quantization.get("config_groups") or {}
    blocks = set()
    for group in groups.values():
        weights = group.get("weights") or {}
        kind = f"compressed-tensors of {weights.get('num_bits')}-bit {weights.get('type')}"
        if (weights.get("num_bits"), weights.get("type")) != (8, "float"):
            raise refusal_of(kind)
        if weights.get("strategy") not in ("channel", "tensor", "block"):
            raise refusal_of(f"{kind} numbers by {weights.get('strategy')}")
        blocks.add(_block(weights.get("block_structure") if weights["strategy"] == "block" else None))
    sparsity = (quantization.get("sparsity_config") or {}).get("format", "dense")
    if stored not in ("float-quantized", "naive-quantized") or sparsity != "dense" or len(blocks) != 1:
        raise refusal_of(f"compressed-tensors in the format {stored}, {sparsity}")
    return Fp8Layout("weight_scale", blocks.pop())


def _block(sides: Any) -> tuple[int, int] | None:
    if sides is None:
        return None
    if not isinstance(sides, list | tuple) or len(sides) != 2 or not all(isinstance(n, int) and n > 0 for n in sides):
        raise refusal_of(f"FP8 in blocks of {sides!r}")
    return int(sides[0]), int(sides[1])


def refusal_of(what: str) -> ModelLoadError:
    """The error for a checkpoint that is quantised in a way that is not read here."""
    return ModelLoadError(
        f"the checkpoint is quantised with {what}, which is not read here",
        hint="Take unquantised weights, or FP8 (compressed-tensors, fp8 or fbgemm_fp8), or a GGUF file.",
    )


def is_of_fp8(name: str) -> bool:
    """Whether a tensor is a scale that is left aside."""
    return name.endswith(_UNUSED)


def scale_of(reader: Reader, layout: Fp8Layout, module: str, shape: torch.Size, cut: Cut | None = None) -> torch.Tensor:
    """The scales of a module's weight, which has this shape, or of a rank's part of it; fp32.

    `[out, 1]`, or spread to the shape of the part where blocks have them. Raises ModelLoadError.
    """
    name = f"{module}.{layout.scale_name}"
    if not reader.has(name) and reader.has(f"{module}.weight_scale_inv"):  # one scale for all under its other name
        name = f"{module}.weight_scale_inv"
    scale = reader.take(name).float()
    rows, columns = shape
    height, width = layout.block or (1, columns)
    if layout.block is None:
        if scale.numel() not in (1, rows):
            raise ModelLoadError(f"the checkpoint has {name} in the shape {list(scale.shape)}")
        scale = scale.reshape(-1, 1).expand(rows, 1)
    elif scale.shape != (-(-rows // height), -(-columns // width)):
        raise ModelLoadError(f"the checkpoint has {name} in the shape {list(scale.shape)}")
    of_rows, of_columns = (_numbers(size, cut, dim, scale.device) for dim, size in enumerate((rows, columns)))
    spread = scale[of_rows // height]
    return spread.contiguous() if layout.block is None else spread[:, of_columns // width]


def blocks_of(
    reader: Reader, layout: Fp8Layout, module: str, numbers: torch.Tensor, shape: torch.Size, cut: Cut | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, or a rank's part of it, in blocks of 128: e4m3 `[out, in]`, and scales fp32 `[⌈out/128⌉, ⌈in/128⌉]`.

    `numbers` are the part's, as they are stored, and `shape` is the whole's. They stay as they are where the checkpoint
    has these very blocks and the part ends where they do; else it is quantised anew. Raises ModelLoadError.
    """
    ends = [] if cut is None else [cut.padding, *(end for pair in cut.ranges for end in pair)]
    if layout.block == (FP8_BLOCK, FP8_BLOCK) and all(end % FP8_BLOCK == 0 for end in ends):
        return numbers, _block_scales(reader, f"{module}.{layout.scale_name}", shape, cut)
    return quantize_blocks(numbers.float() * scale_of(reader, layout, module, shape, cut))


def _block_scales(reader: Reader, name: str, shape: torch.Size, cut: Cut | None) -> torch.Tensor:
    of_blocks = None
    if cut is not None:
        of_blocks = Cut(cut.dim, tuple((start // FP8_BLOCK, stop // FP8_BLOCK) for start, stop in cut.ranges))
    if (stored := reader.shape(name)) != tuple(-(-side // FP8_BLOCK) for side in shape):
        raise ModelLoadError(f"the checkpoint has {name} in the shape {list(stored)}")
    return reader.take(name, of_blocks).float()


def _numbers(size: int, cut: Cut | None, dim: int, device: torch.device) -> torch.Tensor:
    """Which numbers of a side of a weight a rank has."""
    every = torch.arange(size, device=device)
    if cut is None or cut.dim != dim:
        return every
    return torch.cat([*(every[start:stop] for start, stop in cut.ranges), every[:1].expand(cut.padding)])
