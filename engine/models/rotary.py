"""Rotary frequencies that transformers chooses anew in every forward, chosen once.

LongRoPE (arXiv 2402.13753, as in Phi-3) and dynamic NTK scaling look at the largest position of the forward. In a
packed batch that is the longest neighbour's, which would change everybody's angles, and the keys in the cache would
keep the former ones. So the engine's context decides, for every sequence and for good.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

FROZEN = "default"
"""Any name that transformers does not update in the forward."""


@torch.no_grad()
def freeze_rotary(model: nn.Module, context: int) -> list[str]:
    """Fix the frequencies that depend on length to those of `context` tokens; the kinds of scaling it met."""
    met: set[str] = set()
    for module in model.modules():
        kinds: Any = getattr(module, "rope_type", None)
        if isinstance(kinds, str) and _follows_length(kinds):
            _freeze(module, kinds, None, context)
            module.rope_type = FROZEN  # type: ignore[assignment]
            met.add(kinds)
        elif isinstance(kinds, dict):
            for layer_type, kind in kinds.items():
                if _follows_length(kind):
                    _freeze(module, kind, layer_type, context)
                    met.add(kind)
            module.rope_type = {  # type: ignore[assignment]
                layer_type: FROZEN if _follows_length(kind) else kind for layer_type, kind in kinds.items()
            }
    return sorted(met)


def _follows_length(kind: str) -> bool:
    return "dynamic" in kind or kind == "longrope"


def _freeze(module: nn.Module, kind: str, layer_type: str | None, context: int) -> None:
    prefix = "" if layer_type is None else f"{layer_type}_"
    current: torch.Tensor = getattr(module, f"{prefix}inv_freq")
    frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](
        module.config, current.device, seq_len=context, layer_type=layer_type
    )
    current.copy_(frequencies)
    setattr(module, f"{prefix}attention_scaling", scaling)
