"""A model that is loaded, and what its files say of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import ModelLoadError
from engine.models.building import Order, count_parameters
from engine.models.fp8 import Fp8Linear
from engine.models.fp8_blocks import BlockFp8Linear
from engine.models.quantized import QuantizedEmbedding, QuantizedLinear

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_MAX_SAID = 64
"""Entries of a generation_config.json that are passed on; real ones have a dozen."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode on its device, and what the engine needs to know of it."""

    model: "PreTrainedModel"
    directory: Path
    architecture: str
    """Name of transformers' class."""
    hf_config: "PretrainedConfig"
    text_config: "PretrainedConfig"
    """The language model's part of `hf_config`; the same object where there is no other part."""
    vocab_size: int
    """Rows of the output head: the width of the logits, which may exceed the tokenizer's length."""
    eos_token_ids: list[int]
    max_context: int
    generation_defaults: dict[str, bool | int | float]
    weights_bytes: int
    num_parameters: int
    fp8_linears: int
    """How many linears compute in FP8."""


def describe(model: "PreTrainedModel", order: Order) -> LoadedModel:
    """What is known of a model whose weights are there. Raises `ModelLoadError` for a broken generation_config.json."""
    config, directory = order.config, order.resolved.directory
    text_config = config.get_text_config() if order.ranks is None else model.get_decoder().config
    generation = _generation_config(directory)
    eos = generation.get("eos_token_id", getattr(text_config, "eos_token_id", None))
    if eos is None:
        eos = []
    weights_bytes, num_parameters = _size_of(model)
    if order.ranks is not None:
        weights_bytes, num_parameters = order.ranks.sum(weights_bytes), count_parameters(order)
    return LoadedModel(
        model=model,
        directory=directory,
        architecture=type(model).__name__,
        hf_config=config,
        text_config=text_config,
        vocab_size=int(model.get_output_embeddings().out_features),
        eos_token_ids=[int(token) for token in (eos if isinstance(eos, list) else [eos])],
        max_context=int(text_config.max_position_embeddings),
        generation_defaults=_said_of_generation(generation),
        weights_bytes=weights_bytes,
        num_parameters=num_parameters,
        fp8_linears=sum(isinstance(module, Fp8Linear | BlockFp8Linear) for module in model.modules()),
    )


def _size_of(model: "PreTrainedModel") -> tuple[int, int]:
    """Bytes and number of a model's weights."""
    parameters = list(model.parameters())
    weights = [weight for module in model.modules() if isinstance(module, QuantizedLinear) for weight in module.weights]
    embeddings = [module for module in model.modules() if isinstance(module, QuantizedEmbedding)]
    tied = embeddings and model.config.get_text_config().tie_word_embeddings
    return (
        sum(parameter.nbytes for parameter in parameters)
        + sum(weight.packed.nbytes for weight in weights)
        + sum(embedding.nbytes for embedding in embeddings),
        sum(parameter.numel() for parameter in parameters)
        + sum(weight.outputs * weight.size for weight in weights)
        + sum(0 if tied else embedding.num_embeddings * embedding.dim for embedding in embeddings),
    )


def _generation_config(directory: Path) -> dict[str, Any]:
    path = directory / "generation_config.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (OSError, ValueError, TypeError) as error:
        raise ModelLoadError(f"generation_config.json cannot be read: {error}") from error


def _said_of_generation(generation: dict[str, Any]) -> dict[str, bool | int | float]:
    """The numbers and switches that change what transformers would generate. The file is not trusted.

    Token ids are left out: those of the end are applied, and the others change nothing here.
    """
    said = {
        key: value
        for key, value in generation.items()
        if isinstance(value, int | float) and abs(value) < 2**53 and key.isidentifier()
        if not key.startswith(("_", "output_", "return_", "use_cache")) and not key.endswith("_token_id")
    }
    return dict(list(said.items())[:_MAX_SAID])
