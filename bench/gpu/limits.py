"""What a model that is loaded here must move and do, and why something is not measured."""

from typing import Any

import torch

from engine.costs import Costs, costs_of
from engine.messages import EngineInfo


class LeftOut(Exception):
    """Why something is not measured on this device, which is no failure."""


def loaded_costs(model: torch.nn.Module, text_config: Any, info: EngineInfo, *, is_fp8: bool) -> Costs:
    """Read off a loaded model, as the engine has changed it."""
    return costs_of(info, text_config.to_dict(), weights=stored_bytes(model), is_fp8=is_fp8)


def stored_bytes(model: torch.nn.Module) -> int:
    """Of all parameters and buffers on a CUDA device, shared ones once; 0 elsewhere, where some are packed."""
    tensors = [*model.parameters(), *model.buffers()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.is_cuda}
    return sum(storages.values())
