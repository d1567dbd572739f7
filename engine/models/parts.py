"""A model that is built without parameters and filled one by one: in FP8 as its files have it, or one rank's part."""

from typing import TYPE_CHECKING, Any

import torch

from engine.models.building import Order, check_memory, count_parameters, draw_parts, empty_model
from engine.models.cuts import Cutter
from engine.models.filling import Filler
from engine.models.fp8_checkpoint import Fp8Layout
from engine.models.reading import Reader, renaming_for
from engine.models.split import adapt
from engine.sizing.split import Split, split_of
from engine.weights.checkpoint import weight_files, weights_size

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def load_parts(order: Order, layout: Fp8Layout | None, stored: torch.dtype, *, keep: bool) -> "PreTrainedModel":
    """Load a checkpoint of numbers that are `stored` so, or have a `layout` of FP8; draw one that is random.

    With `keep`, what is in FP8 stays so. Raises ConfigError for ranks that do not divide the model, ModelLoadError.
    """
    split = None if order.ranks is None else _split_of(order.config, order.ranks.size)
    if layout is not None:
        del order.config.quantization_config
    model: Any = empty_model(order)
    vocab_size = int(model.get_output_embeddings().out_features)
    cutter = None
    if order.ranks is not None and split is not None:
        cutter = Cutter(split, order.ranks.rank, _path_of(model, model.get_decoder()))
    num_bytes = _weight_bytes(order, layout, stored, keep=keep)
    check_memory(num_bytes if cutter is None else round(num_bytes * cutter.share(model)), order.device)
    _fill(model, order, layout, cutter, keep=keep)
    model.tie_weights()
    if order.ranks is not None and split is not None:
        adapt(model, split, order.ranks, vocab_size)
        order.ranks.meet(order.progress)
    loaded: PreTrainedModel = model.to(order.device)
    return loaded


def _weight_bytes(order: Order, layout: Fp8Layout | None, stored: torch.dtype, *, keep: bool) -> int:
    """What the whole model's weights take."""
    in_fp8 = layout is not None and keep
    if order.resolved.kind == "random":
        return count_parameters(order) * (1 if in_fp8 else order.dtype.itemsize)
    num_bytes = weights_size(order.resolved.directory)
    if in_fp8:
        return num_bytes
    return num_bytes * order.dtype.itemsize // (stored.itemsize if layout is None else 1)


def _fill(model: Any, order: Order, layout: Fp8Layout | None, cutter: Cutter | None, *, keep: bool) -> None:
    if order.resolved.kind == "random":
        draw_parts(model, order.seed, order.device, cutter, layout if keep else None)
        return
    reader = Reader(weight_files(order.resolved.directory), order.device, renaming_for(model))
    filler = Filler(model, reader, order.dtype, layout=layout, keep=keep, cutter=cutter)
    filler.fill(lambda fraction: order.progress("loading the weights", fraction))


def _split_of(config: "PretrainedConfig", ranks: int) -> Split:
    text = config.get_text_config().to_dict()
    return split_of(text | {"quantization_config": getattr(config, "quantization_config", None)}, ranks)


def _path_of(model: Any, part: Any) -> str:
    return str(next(name for name, module in model.named_modules() if module is part))
