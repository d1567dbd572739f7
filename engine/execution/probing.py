"""What a model that is loaded turns out to be: its layers, and what its keys and a CPU's kernels need.

Lines for the operator are added to the `notes` that are given.
"""

import logging
from collections.abc import Callable, Mapping

import torch

from engine.attention.choice import Problem
from engine.attention.context import probe_layers
from engine.cache import Progress
from engine.config import EngineConfig
from engine.kernels.cpu import MAX_QUERY_DIM, CpuKernels, load_kernels
from engine.models.key_offsets import key_offsets
from engine.models.load_check import FOREIGN, check_layers, refusal
from engine.models.loaded import LoadedModel
from engine.sizing.cache import LayerShape

logger = logging.getLogger(__name__)

Logits = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Logits `[R, V]` of token ids `[T]` at positions `[T]`, of the tokens that an index `[R]` picks."""


@torch.inference_mode()
def probed_layers(loaded: LoadedModel, logits_of: Logits) -> dict[int, LayerShape]:
    """The attention layers, found by a forward of one token. Raises ModelLoadError for a model that is not served."""
    token = torch.zeros(1, dtype=torch.int64, device=loaded.model.device)
    with probe_layers() as shapes:
        try:
            logits = logits_of(token, token, token)
        except FOREIGN as error:  # it wants more than tokens and positions, whatever that is
            logger.exception("the first forward pass failed")
            raise refusal(loaded.architecture, f"its forward pass fails ({type(error).__name__})") from error
    check_layers(loaded.architecture, loaded.text_config, set(shapes))
    if logits.shape[-1] != loaded.vocab_size:
        raise refusal(loaded.architecture, "its logits are not as wide as its output head")
    return dict(shapes)


def offsets_of_keys(
    config: EngineConfig,
    loaded: LoadedModel,
    problem: Problem,
    shapes: Mapping[int, LayerShape],
    progress: Progress,
    notes: list[str],
) -> dict[int, torch.Tensor] | None:
    """What a cache in FP8 holds its keys without.

    A cap on scores would not let it vanish, and values that are in the keys would lack it too.
    """
    if config.kv_dtype != "fp8" or problem.softcap or any(shape.is_latent for shape in shapes.values()):
        return None
    progress("reading a text for the FP8 cache", None)
    found = key_offsets(loaded.model, loaded.directory, config.context or loaded.max_context)
    if not found:
        notes.append("keys are rounded to FP8 as they are: there is no tokenizer.json to read a text with")
    return found


def cpu_kernels(
    attention_name: str, shapes: Mapping[int, LayerShape], dtype: torch.dtype, progress: Progress, notes: list[str]
) -> CpuKernels | None:
    """The kernels of a CPU where its attention is theirs; None where they do not suit or cannot be built."""
    if attention_name != "cpu" or any(max(s.k_dim, s.v_dim) > MAX_QUERY_DIM for s in shapes.values()):
        return None
    progress("building the CPU kernels", None)
    kernels = load_kernels(dtype)
    if kernels is None:
        notes.append("no CPU kernels (see the log): plain torch serves instead, slower")
    return kernels
