"""A model that was built without parameters gets those of a checkpoint, one by one: as they are, in FP8, or in part.

transformers' own loader serves whole models in 16 or 32 bits. What it has no place for comes here: linears that stay in
FP8 as the files have them, and models of which each rank reads its part.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from engine.errors import ModelLoadError
from engine.models.cuts import Cut, Cutter
from engine.models.fp8 import Fp8Linear, fits
from engine.models.fp8_blocks import BlockFp8Linear
from engine.models.fp8_checkpoint import FOREIGN, Fp8Layout, blocks_of, is_of_fp8, refusal_of, scale_of
from engine.models.fp8_experts import Fp8ExpertsReader, part_of_one
from engine.models.reading import Reader, is_left_out


class Filler:
    """Fills one model from one checkpoint."""

    def __init__(
        self,
        model: Any,
        reader: Reader,
        dtype: torch.dtype,
        *,
        layout: Fp8Layout | None = None,
        keep: bool = True,
        cutter: Cutter | None = None,
    ) -> None:
        """Parameters come in `dtype`.

        With a `layout` of FP8 and `keep`, linears that are stored in it become `Fp8Linear`s, or `BlockFp8Linear`s where
        scales belong to blocks, and experts `Fp8Experts`. Without `keep` they are unpacked. With a `cutter` only a
        rank's part of each is read.
        """
        self._model, self._reader, self._dtype = model, reader, dtype
        self._layout, self._keep, self._cutter = layout, keep, cutter
        self._experts = Fp8ExpertsReader(reader, layout, cutter) if layout is not None and keep else None
        self._replaced: set[nn.Module] = set()

    def fill(self, told: Callable[[float], None]) -> None:
        """Fill all; `told` hears the fraction done. Raises ModelLoadError."""
        model: Any = self._model
        is_tied = any(
            getattr(part, "tie_word_embeddings", False) for part in (model.config, model.get_decoder().config)
        )
        tied = set(getattr(model, "_tied_weights_keys", None) or ()) if is_tied else set()
        places = list(_places(model))
        for number, (module, name, path) in enumerate(places):
            told(number / len(places))
            if path in tied and not self._reader.has(path):
                continue  # the model ties it afterwards
            self._place(module, name, path)
        left = [name for name in self._reader.unused() if not is_of_fp8(name) and not is_left_out(model, name)]
        if self._layout is not None and left:
            raise ModelLoadError(f"the checkpoint has {left[0]}, and the model has no place for it")

    def _place(self, module: nn.Module, name: str, path: str) -> None:
        shape = getattr(module, name).shape
        cut = None if self._cutter is None else self._cutter.cut(path, shape)
        if module in self._replaced:
            return  # with the other parameter of its experts
        if experts := self._reader.experts(path):
            if self._replace_experts(module, path.rpartition(".")[0]):
                return
            _set(module, name, self._stacked(path, experts, shape, cut))
            return
        if (stored := self._reader.shape(path)) != shape:
            raise ModelLoadError(f"the checkpoint has {path} in another shape, {list(stored)}")
        tensor = self._take(path, cut)
        if tensor.dtype == torch.float8_e4m3fn:
            self._place_fp8(path.removesuffix(".weight"), tensor, shape, cut)
        else:
            _set(module, name, tensor if name in module._buffers else tensor.to(self._dtype))

    def _take(self, path: str, cut: Cut | None) -> torch.Tensor:
        tensor = self._reader.take(path, cut)
        if tensor.dtype in FOREIGN:
            raise refusal_of(str(tensor.dtype).removeprefix("torch."))
        return tensor

    def _place_fp8(self, path: str, numbers: torch.Tensor, shape: torch.Size, cut: Cut | None) -> None:
        model: nn.Module = self._model
        linear: Any = model.get_submodule(path)
        if type(linear) is not nn.Linear:
            raise ModelLoadError(f"the checkpoint has {path} in FP8, and only linears are read so")
        assert self._layout is not None
        if not self._keep or not fits(numbers):
            scale = scale_of(self._reader, self._layout, path, shape, cut)
            _set(linear, "weight", (numbers.float() * scale).to(self._dtype))
            return
        if self._layout.block is None:
            scale = scale_of(self._reader, self._layout, path, shape, cut)[:, 0]
            new: nn.Module = Fp8Linear(numbers, scale, linear.bias)
        else:
            blocks = blocks_of(self._reader, self._layout, path, numbers, shape, cut)
            new = BlockFp8Linear(*blocks, linear.bias)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, new)

    def _replace_experts(self, experts: nn.Module, path: str) -> bool:
        """Put `Fp8Experts` in the place of experts, if they stay in FP8; whether they do."""
        new = None if self._experts is None else self._experts.read(path, experts)
        if new is None:
            return False
        parent, _, name = path.rpartition(".")
        model: nn.Module = self._model
        setattr(model.get_submodule(parent), name, new)
        self._replaced.add(experts)
        return True

    def _stacked(self, path: str, experts: list[list[str]], shape: torch.Size, cut: Cut | None) -> torch.Tensor:
        """One tensor `[E, out, in]` of what the checkpoint has expert by expert."""
        if len(experts) != shape[0]:
            raise ModelLoadError(f"the checkpoint has {len(experts)} experts where {path} has {shape[0]}")
        part = part_of_one(cut, len(experts[0]))
        whole = torch.Size((shape[1] // len(experts[0]), shape[2]))
        return torch.stack([torch.cat([self._unpacked(name, whole, part) for name in names]) for names in experts])

    def _unpacked(self, name: str, shape: torch.Size, cut: Cut | None) -> torch.Tensor:
        if (stored := self._reader.shape(name)) != shape:
            raise ModelLoadError(f"the checkpoint has {name} in another shape, {list(stored)}")
        tensor = self._take(name, cut)
        if tensor.dtype == torch.float8_e4m3fn:
            assert self._layout is not None
            scale = scale_of(self._reader, self._layout, name.removesuffix(".weight"), shape, cut)
            return (tensor.float() * scale).to(self._dtype)
        return tensor.to(self._dtype)


def _places(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Module, name and path of each parameter, and of each buffer that checkpoints hold.

    Of a linear the bias comes first, so that a weight finds it there.
    """
    stored = model.state_dict()
    for prefix, module in model.named_modules():
        found = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        for name in sorted(found):
            path = f"{prefix}.{name}" if prefix else name
            if path in stored:
                yield module, name, path


def _set(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    if name in module._buffers:
        made = module._buffers[name]
        assert made is not None
        # A bias of a router is made in the model's dtype, and kept in fp32 by checkpoints and transformers' own loader.
        module._buffers[name] = tensor.to(torch.promote_types(tensor.dtype, made.dtype))
    else:
        setattr(module, name, nn.Parameter(tensor, requires_grad=False))
