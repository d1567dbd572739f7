"""What a model that is loaded here must move and do, and why something is not measured."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import msgspec
import torch

from engine.costs import Costs, costs_of
from engine.messages import EngineInfo


class LeftOut(Exception):
    """Why something is not measured on this device, which is no failure."""


def loaded_costs(model: torch.nn.Module, text_config: Any, info: EngineInfo, *, is_fp8: bool) -> Costs:
    """Of steps of text, read off a loaded model as the engine has changed it."""
    idle = set(of_images(model))
    info = msgspec.structs.replace(
        info,
        num_parameters=info.num_parameters - sum(part.numel() for part in idle),
        weights_bytes=info.weights_bytes - sum(part.nbytes for part in idle),
    )
    kept = (tensor for tensor in chain(model.parameters(), model.buffers()) if tensor not in idle)
    return costs_of(info, text_config.to_dict(), weights=stored_bytes(kept), is_fp8=is_fp8)


def of_images(model: Any) -> Iterator[torch.Tensor]:
    """Parameters that only images need: those of towers, and of layers of cross attention, which text passes by."""
    decoder = model.get_decoder()
    crossing = [layer for layer in getattr(decoder, "layers", ()) if hasattr(layer, "cross_attn")]
    of_text = {id(part) for module in (decoder, model.get_output_embeddings()) for part in module.parameters()}
    of_text -= {id(part) for layer in crossing for part in layer.parameters()}
    return (part for part in model.parameters() if id(part) not in of_text)


def stored_bytes(tensors: Iterator[torch.Tensor]) -> int:
    """Of those on a CUDA device, shared ones once; 0 elsewhere, where some are packed."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.is_cuda}
    return sum(storages.values())
