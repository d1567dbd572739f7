"""Experts that a checkpoint has one by one in FP8, read into `Fp8Experts`, whole or a rank's part of each.

DeepSeek-R1's are in the very blocks that `Fp8Experts` has, and are kept as they are, number by number. Of other scales
the weights of each expert are unpacked and quantised anew, one expert at a time.
"""

from typing import Any

import torch

from engine.errors import ModelLoadError
from engine.models.cuts import Cut, Cutter
from engine.models.experts import Fp8Experts, activation_of
from engine.models.fp8_checkpoint import Fp8Layout, blocks_of, refusal_of
from engine.models.reading import Reader

Blocks = tuple[torch.Tensor, torch.Tensor]
"""Numbers e4m3 `[out, in]`, and scales fp32 `[⌈out/128⌉, ⌈in/128⌉]`."""


class Fp8ExpertsReader:
    """Reads the experts of one checkpoint."""

    def __init__(self, reader: Reader, layout: Fp8Layout, cutter: Cutter | None) -> None:
        """With a `cutter` only a rank's part of each expert is read."""
        self._reader, self._layout, self._cutter = reader, layout, cutter

    def read(self, path: str, experts: Any) -> Fp8Experts | None:
        """What takes the place of a model's `experts` at a path; None if the checkpoint has others than those in FP8.

        Raises ModelLoadError for experts of a form that FP8 is not computed in.
        """
        names = {name: self._reader.experts(f"{path}.{name}") for name in ("gate_up_proj", "down_proj")}
        if not all(names.values()) or not self._reader.has(self._scale_name(names["down_proj"][0][0])):
            return None
        activation = activation_of(experts)
        if activation is None:
            raise ModelLoadError(f"the checkpoint has {path} in FP8, and FP8 is not computed in experts of their form")
        stacks = [self._stack(f"{path}.{name}", getattr(experts, name).shape, found) for name, found in names.items()]
        (gate_up, gate_up_scale), (down, down_scale) = stacks
        return Fp8Experts(gate_up, gate_up_scale, down, down_scale, activation)

    def _stack(self, path: str, shape: torch.Size, names: list[list[str]]) -> Blocks:
        """All experts' weights, which have this shape in the whole model, in one tensor `[E, out, in]`."""
        if len(names) != shape[0]:
            raise ModelLoadError(f"the checkpoint has {len(names)} experts where {path} has {shape[0]}")
        cut = None if self._cutter is None else part_of_one(self._cutter.cut(path, shape), len(names[0]))
        whole = torch.Size((shape[1] // len(names[0]), shape[2]))
        stacked: list[torch.Tensor] = []
        for number, of_expert in enumerate(names):
            parts = [self._blocks(name, whole, cut) for name in of_expert]
            # Byte by byte, since not every device joins or copies the dtype itself.
            joined = [torch.cat([part[0].view(torch.uint8) for part in parts]), torch.cat([part[1] for part in parts])]
            if not stacked:  # one tensor for all from the start: twice the experts of a layer may not fit
                stacked = [one.new_empty(shape[0], *one.shape) for one in joined]
            for target, one in zip(stacked, joined, strict=True):
                target[number] = one
        return stacked[0].view(torch.float8_e4m3fn), stacked[1]

    def _blocks(self, name: str, shape: torch.Size, cut: Cut | None) -> Blocks:
        if (stored := self._reader.shape(name)) != shape:
            raise ModelLoadError(f"the checkpoint has {name} in another shape, {list(stored)}")
        numbers = self._reader.take(name, cut)
        if numbers.dtype != torch.float8_e4m3fn:
            raise refusal_of(f"{str(numbers.dtype).removeprefix('torch.')} beside scales ({name})")
        return blocks_of(self._reader, self._layout, name.removesuffix(".weight"), numbers, shape, cut)

    def _scale_name(self, name: str) -> str:
        return f"{name.removesuffix('.weight')}.{self._layout.scale_name}"


def part_of_one(cut: Cut | None, pieces: int) -> Cut | None:
    """What a cut of all experts' `[E, out, in]` takes of one expert's `[out / pieces, in]`."""
    if cut is None:
        return None
    return Cut(cut.dim - 1, cut.ranges[:1]) if pieces == len(cut.ranges) else None
