"""A model of transformers' own class, without parameters or with random ones, and room for it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from engine.cache import Progress
from engine.device.device import available_memory
from engine.device.ranks import Ranks
from engine.errors import ModelLoadError
from engine.models.cuts import Cutter
from engine.models.experts import Fp8Experts, activation_of
from engine.models.fp8 import EXPANSION, Fp8Linear, fits
from engine.models.fp8_blocks import BlockFp8Linear
from engine.models.fp8_checkpoint import Fp8Layout
from engine.weights.random_model import SEED_FILE
from engine.weights.sources import ResolvedModel

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be loaded, as what, and where to."""

    resolved: ResolvedModel
    config: "PretrainedConfig"
    device: torch.device
    dtype: torch.dtype
    attention_name: str
    """Registered with transformers."""
    progress: Progress
    ranks: Ranks | None = None
    """Those that share the model; None where it is whole."""

    @property
    def seed(self) -> int:
        """Of a model with random weights."""
        return int((self.resolved.directory / SEED_FILE).read_text(encoding="utf-8"))


def attention_of(config: "PretrainedConfig", name: str) -> dict[str, str] | str:
    """The attention of each part: ours for the language model, torch's own for towers, which attend in other ways.

    transformers leaves the language model on its default where only `""` is named.
    """
    if not hasattr(config, "vision_config"):
        return name
    return {**dict.fromkeys(config.sub_configs, "sdpa"), "": name, "text_config": name}


def check_heads(config: "PretrainedConfig") -> None:
    """Raise ModelLoadError where KV heads do not divide the heads that share them: no attention is made of that.

    So it is where a configuration names one number, and the default of its type is taken for the other.
    """
    text = config.get_text_config()
    heads, kv_heads = getattr(text, "num_attention_heads", None), getattr(text, "num_key_value_heads", None)
    if not isinstance(heads, int) or not isinstance(kv_heads, int) or getattr(text, "kv_lora_rank", None) is not None:
        return
    if kv_heads < 1 or heads % kv_heads:
        raise ModelLoadError(
            f"num_key_value_heads: {kv_heads} does not divide the model's {heads} attention heads",
            hint=f"what a configuration leaves out is the default of its type, here {text.model_type}: name both",
        )


def auto_class(config: "PretrainedConfig") -> Any:
    """Which of transformers' classes builds a model: one that sees, or one of text alone."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM


def empty_model(order: Order) -> "PreTrainedModel":
    """A model whose parameters are on the meta device, and whose buffers are there."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return _model(order)


def count_parameters(order: Order) -> int:
    """The numbers of the whole model, without building it."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in _model(order).parameters())


def _model(order: Order) -> "PreTrainedModel":
    model: PreTrainedModel = auto_class(order.config).from_config(
        order.config,
        dtype=order.dtype,
        attn_implementation=attention_of(order.config, order.attention_name),
        trust_remote_code=False,
    )
    return model


@torch.no_grad()
def draw_parts(
    model: "PreTrainedModel", seed: int, device: torch.device, cutter: Cutter | None, layout: Fp8Layout | None = None
) -> None:
    """Draw the weights of an `empty_model`, module by module, and keep a rank's part of each; all without a `cutter`.

    Every rank draws the same, and holds one module whole at a time: a model may be larger than a device. With a
    `layout` linears and experts of the decoder are quantised as soon as they are drawn, as checkpoints have them.
    """
    inside = set(model.get_decoder().modules()) if layout is not None else set()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for path, module in list(model.named_modules()):
            if not list(module.parameters(recurse=False)):
                continue
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(torch.zeros_like(parameter, device=device), requires_grad=False))
            model._init_weights(module)
            for name, parameter in list(module.named_parameters(recurse=False)):
                cut = None if cutter is None else cutter.cut(f"{path}.{name}" if path else name, parameter.shape)
                if cut is not None:
                    setattr(module, name, nn.Parameter(cut.take(parameter.data), requires_grad=False))
            if layout is None or module not in inside:
                continue
            if (quantized := in_fp8_of(path, module, layout)) is not None:
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, quantized)


def in_fp8_of(path: str, module: Any, layout: Fp8Layout) -> nn.Module | None:
    """What a checkpoint in FP8 has in the place of a module of a decoder; None where it has the same."""
    if type(module) is nn.Linear and fits(module.weight) and not path.endswith(EXPANSION):
        kind = Fp8Linear if layout.block is None else BlockFp8Linear
        return kind.quantized(module.weight, module.bias)
    activation = activation_of(module)
    return None if activation is None else Fp8Experts.quantized(module.gate_up_proj, module.down_proj, activation)


def check_memory(needed: int, device: torch.device) -> None:
    """Raise ModelLoadError if a device has not so many bytes for weights."""
    available = available_memory(device)
    if needed > available:
        place = "GPU memory" if device.type == "cuda" else "memory"
        raise ModelLoadError(
            f"the weights need {needed / _GIB:.1f} GiB of {place}, and {available / _GIB:.1f} GiB are free",
            hint="Choose a smaller model, or free some memory.",
        )
