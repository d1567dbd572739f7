"""From a source to a model on its device: transformers' class, our attention, nothing that needs a gradient."""

import logging
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
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
    empty_model,
)
from engine.models.fp8 import check_products, quantize_experts, quantize_linears
from engine.models.fp8_checkpoint import Fp8Layout, read_layout
from engine.models.fp8_offsets import input_means
from engine.models.loaded import LoadedModel, describe
from engine.models.parts import load_parts
from engine.models.quantized import fill_quantized, quantized_bytes
from engine.weights.checkpoint import weights_size
from engine.weights.gguf_file import GGUFFile
from engine.weights.sources import resolve

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

LONGEST_REASON = 500
"""Characters of what another library says of a model that it cannot load."""


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
    return describe(model, order)


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
    text = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
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
