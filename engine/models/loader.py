"""From a source to a model on its device: transformers' class, our attention, nothing that needs a gradient."""

import json
import logging
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engine.cache import Progress
from engine.config import EngineConfig
from engine.device.device import check_fp8, select_dtype
from engine.device.ranks import Ranks
from engine.errors import HeadraceError, ModelLoadError
from engine.kernels import cpu_quantized
from engine.models.building import (
    Order,
    attention_of,
    auto_class,
    check_heads,
    check_memory,
    count_parameters,
    empty_model,
)
from engine.models.fp8 import Fp8Linear, check_products, quantize_experts, quantize_linears
from engine.models.fp8_blocks import BlockFp8Linear
from engine.models.fp8_checkpoint import Fp8Layout, read_layout
from engine.models.fp8_offsets import input_means
from engine.models.parts import load_parts
from engine.models.quantized import QuantizedEmbedding, QuantizedLinear, fill_quantized, quantized_bytes
from engine.weights.checkpoint import weights_size
from engine.weights.gguf_file import GGUFFile
from engine.weights.sources import resolve

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

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


def load(
    config: EngineConfig, device: torch.device, attention_name: str, progress: Progress, ranks: Ranks | None = None
) -> LoadedModel:
    """Resolve the source of `config`, and build the model on `device` with the attention of that name.

    `attention_name` must be registered with transformers before. Of `ranks` each gets its part of the model. Raises
    `ModelLoadError` with a hint, and ConfigError for ranks that do not divide the model.
    """
    converted_dtype = select_dtype(config.dtype, torch.bfloat16, device)
    resolved = resolve(
        config.source,
        config.revision,
        progress=progress,
        check_size=lambda num_weights: check_memory(
            num_weights * converted_dtype.itemsize // config.tensor_parallel, device
        ),
        converts=not _keeps_quantized(config, device, converted_dtype),
    )
    progress("reading the configuration", None)
    hush_transformers()
    try:
        hf_config = _read_config(resolved.directory)
        check_heads(hf_config)
        dtype = select_dtype(config.dtype, _checkpoint_dtype(hf_config), device)
        layout = _fp8_layout(config, hf_config, device)
        order = Order(resolved, hf_config, device, dtype, attention_name, progress, ranks)
        if resolved.gguf is not None:
            model = _load_quantized(order, resolved.gguf)
        else:
            model = _load_layout(order, layout, config)
        check_products(model.get_decoder())
    except HeadraceError:
        raise
    except Exception as error:  # transformers raises every kind, and each means that this model cannot be loaded
        logger.debug("loading %s failed", config.source, exc_info=True)
        raise _explained(config, error) from error
    model.eval().requires_grad_(False)
    return _describe(model, order)


def _load_layout(order: Order, layout: Fp8Layout | None, config: EngineConfig) -> "PreTrainedModel":
    """Load safetensors, or draw what is random."""
    is_random = order.resolved.kind == "random"
    order.progress("drawing random weights" if is_random else "loading the weights", None)
    if is_random or layout is not None or order.ranks is not None:
        keep = config.quantization != "none"
        model = load_parts(order, layout, _checkpoint_dtype(order.config), keep=keep)
    else:
        with _weights_progress(order.progress):
            model = _load_weights(order)
    if layout is None and config.quantization == "fp8":
        order.progress("quantising the weights", None)
        quantize_linears(model.get_decoder(), input_means(model, order.resolved.directory))
        quantize_experts(model.get_decoder())
    return model


def hush_transformers() -> None:
    """Keep transformers' progress bars and advice out of our output; its errors still reach us."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


@contextmanager
def _weights_progress(progress: Progress) -> Iterator[None]:
    """Turn transformers' progress bar over the weights into fractions of `progress` while the block runs."""
    from transformers.utils import logging as transformers_logging

    def hook(bar: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        items = args[0] if args else kwargs.get("iterable")
        if kwargs.get("desc") != "Loading weights" or not isinstance(items, Sized):
            return bar(*args, **kwargs)
        return _counted(items, len(items), progress)

    previous = transformers_logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)


def _counted(items: Any, total: int, progress: Progress) -> Iterator[Any]:
    percent = -1
    for number, item in enumerate(items):
        if number * 100 // total > percent:
            percent = number * 100 // total
            progress("loading the weights", number / total)
        yield item


def _read_config(directory: Path) -> "PretrainedConfig":
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)


def _checkpoint_dtype(config: "PretrainedConfig") -> torch.dtype:
    for part in (config, config.get_text_config()):
        dtype = getattr(part, "dtype", None)
        if isinstance(dtype, str):
            dtype = getattr(torch, dtype, None)
        if isinstance(dtype, torch.dtype):
            return dtype
    return torch.float32


def _load_weights(order: Order) -> "PreTrainedModel":
    stored = _checkpoint_dtype(order.config)
    check_memory(weights_size(order.resolved.directory) * order.dtype.itemsize // stored.itemsize, order.device)
    model, report = auto_class(order.config).from_pretrained(
        order.resolved.directory,
        config=order.config,
        dtype=order.dtype,
        attn_implementation=attention_of(order.config, order.attention_name),
        device_map=None if order.device.type == "cpu" else {"": order.device},
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    # transformers fills what is missing or misshapen with random weights; here it is an error, with a name.
    absent = sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])})
    if absent:
        raise ModelLoadError(
            f"the checkpoint lacks {absent[0]} or has it in another shape" + _and_more(absent),
            hint="config.json and the weights do not belong together, or the download is incomplete.",
        )
    return model


def _keeps_quantized(config: EngineConfig, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a GGUF file's weights stay as they are: on a CPU that computes in fp32, with a compiler for the kernels.

    `fusion: false` asks for transformers' own products, and ranks have parts of what is unpacked.
    """
    return (
        device.type == "cpu"
        and dtype == torch.float32
        and config.quantization == "auto"
        and config.fusion
        and config.tensor_parallel == 1
        and cpu_quantized.is_available()
    )


def _load_quantized(order: Order, path: Path) -> "PreTrainedModel":
    """Build the model without parameters, then give it those of a GGUF file, in the fewest bits."""
    file = GGUFFile(path)
    check_memory(quantized_bytes(file), order.device)
    model = empty_model(order)
    fill_quantized(model, file, order.resolved.directory, order.progress)
    return model


def _fp8_layout(config: EngineConfig, hf_config: "PretrainedConfig", device: torch.device) -> Fp8Layout | None:
    """How the checkpoint is quantised, None if it is not. Raises ConfigError or ModelLoadError where it must not be."""
    quantization = getattr(hf_config, "quantization_config", None)
    layout = None if quantization is None else read_layout(quantization)
    if layout is not None and hasattr(hf_config, "vision_config"):
        raise ModelLoadError("FP8 checkpoints of vision models are not read here")
    if config.quantization == "fp8" or (layout is not None and config.quantization == "auto"):
        check_fp8("quantization", device)
    return layout


def _and_more(names: list[str]) -> str:
    return f" ({len(names) - 1} more such tensors)" if names[1:] else ""


def _explained(config: EngineConfig, error: Exception) -> ModelLoadError:
    """What went wrong, in the words of the one who must mend it."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return ModelLoadError(f"{config.name} does not fit into memory", hint="Choose a smaller model or dtype.")
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return ModelLoadError(
            f"{config.name} needs Python code from its repository, which is never run",
            hint="Only architectures that transformers itself has are served.",
        )
    if "does not recognize this architecture" in str(error) or "Unrecognized" in text:
        return ModelLoadError(
            f"{config.name} is of an architecture that this version of transformers does not have",
            hint="A newer transformers may have it.",
        )
    return ModelLoadError(f"{config.name} cannot be loaded: {text}")


def _describe(model: "PreTrainedModel", order: Order) -> LoadedModel:
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
