"""The tensors of a checkpoint, by the names of the model that they are for, whole or in parts.

transformers has renamed parameters since checkpoints were published, and keeps experts in one tensor that most
checkpoints have one by one. It knows the old names; what it says of them is used here, but no tensor is read whole of
which a rank needs a part.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from engine.errors import ModelLoadError
from engine.models.cuts import Cut

_LISTED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""Of experts: the parameters of transformers' classes, and what checkpoints have of each expert."""


class Reader:
    """Reads a checkpoint's safetensors onto a device."""

    def __init__(
        self, files: list[Path], device: torch.device, renamed: Callable[[str], str] = lambda name: name
    ) -> None:
        """`renamed` gives the model's name of what the files call otherwise."""
        handles: list[Any] = [safe_open(file, framework="pt", device=str(device)) for file in files]
        self._places: dict[str, tuple[Any, str]] = {
            renamed(name): (handle, name)
            for handle in handles
            for name in handle.keys()  # noqa: SIM118
        }
        self.used: set[str] = set()
        self.num_bytes = 0
        """Read so far."""

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self._places

    def shape(self, name: str) -> torch.Size:
        """The shape of a tensor. Raises ModelLoadError if there is none of that name."""
        handle, key = self._find(name)
        return torch.Size(handle.get_slice(key).get_shape())

    def take(self, name: str, cut: Cut | None = None) -> torch.Tensor:
        """A tensor, or a rank's part of it, which counts as used. Raises ModelLoadError if it is not there."""
        handle, key = self._find(name)
        self.used.add(name)
        if cut is None:
            tensor: torch.Tensor = handle.get_tensor(key)
            self.num_bytes += tensor.nbytes
            return tensor
        stored = handle.get_slice(key)

        def piece(start: int, stop: int) -> torch.Tensor:
            read: torch.Tensor = stored[(slice(None),) * cut.dim + (slice(start, stop),)]
            self.num_bytes += read.nbytes
            return read

        return cut.collect(piece)

    def experts(self, path: str) -> list[list[str]]:
        """For the parameter of all experts at a path: of each expert the names of what it is made of, in order.

        Empty where the checkpoint has it in one tensor, or where it is no such parameter.
        """
        prefix, _, name = path.rpartition(".")
        if name not in _LISTED or self.has(path) or not prefix.endswith("experts"):
            return []
        names = [[f"{prefix}.0.{part}.weight" for part in _LISTED[name]]]
        while self.has(names[-1][0]):
            number = len(names)
            names.append([f"{prefix}.{number}.{part}.weight" for part in _LISTED[name]])
        return names[:-1]

    def unused(self) -> list[str]:
        """Tensors that nobody took."""
        return sorted(set(self._places) - self.used)

    def _find(self, name: str) -> tuple[Any, str]:
        if name not in self._places:
            raise ModelLoadError(
                f"the checkpoint lacks {name}",
                hint="config.json and the weights do not belong together, or the download is incomplete.",
            )
        return self._places[name]


def renaming_for(model: Any) -> Callable[[str], str]:
    """How the names in checkpoints of a model become its own, as transformers says it."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    renamings = [step for step in get_model_conversion_mapping(model) if isinstance(step, WeightRenaming)]
    names = set(model.state_dict())
    base = f"{model.base_model_prefix}."

    def renamed(name: str) -> str:
        for step in renamings:
            name, _ = step.rename_source_key(name)
        if base + name in names:
            return base + name
        return name.removeprefix(base) if name.removeprefix(base) in names else name

    return renamed


def is_left_out(model: Any, name: str) -> bool:
    """Whether a tensor is of a part of the checkpoint that this model does without, as transformers says it.

    That are layers that predict further tokens (MTP), stored behind the model's own (DeepSeek-R1: layer 61).
    """
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    if any(re.search(pattern, name) for pattern in patterns):
        return True
    config = model.config.get_text_config()
    layer = re.search(r"\blayers\.(\d+)\.", name)
    further = int(getattr(config, "num_nextn_predict_layers", 0) or 0)
    return layer is not None and 0 <= int(layer[1]) - config.num_hidden_layers < further
