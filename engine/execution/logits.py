"""The forward pass of transformers' model, as every step calls it."""

from typing import TYPE_CHECKING

import torch

from engine.execution.sight import Seen, given
from engine.models.cross_attention import cross_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def compute_logits(
    model: "PreTrainedModel", input_ids: torch.Tensor, positions: torch.Tensor, index: torch.Tensor, seen: Seen
) -> torch.Tensor:
    """Logits `[R, V]` of tokens `[T]` that have `seen` images, or none, for those that an index `[R]` picks.

    Inside `attention_step`: nothing else says where a sequence begins.
    """
    inputs = {"input_ids": input_ids} if seen.embedded is None else {"inputs_embeds": seen.embedded}
    with given(model.get_decoder(), seen.of_decoder):
        output = model(
            **{name: tensor.unsqueeze(0) for name, tensor in inputs.items()},
            position_ids=positions.unsqueeze(-2),
            attention_mask=None,
            use_cache=False,
            logits_to_keep=index,
            **(cross_inputs(seen.looks, input_ids) if seen.looks else {}),
        )
    return torch.as_tensor(output.logits[0])
