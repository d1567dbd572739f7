"""What a GGUF file says of its model, in transformers' words: the configuration, and each tensor's name and layout.

llama.cpp's keys and tensor names are those of its converter; what that converter changed on the way in (the order of
rotary halves, norms stored as weight plus one) is changed back here. Only dense decoders are known: an architecture is
added to `ARCHITECTURES` with what differs from Llama.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.errors import ModelLoadError
from engine.weights.gguf_file import GGUFFile

Array = np.ndarray[Any, np.dtype[np.float32]]

_TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_LAYER_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# Tensors that are part of the configuration, not of the weights.
_ROPE_TENSORS = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How one architecture differs from Llama."""

    model_type: str
    model_class: str
    layer_names: dict[str, str] = field(default_factory=dict)
    rotary_interleaved: bool = False
    """The file holds rotary pairs side by side in the rows of q and k; transformers holds two halves."""
    norm_offset: float = 0.0
    """Added to every norm weight by llama.cpp's converter."""


ARCHITECTURES = {
    "llama": Architecture(model_type="llama", model_class="LlamaForCausalLM", rotary_interleaved=True),
    "qwen2": Architecture(model_type="qwen2", model_class="Qwen2ForCausalLM"),
    "qwen3": Architecture(model_type="qwen3", model_class="Qwen3ForCausalLM"),
    "gemma": Architecture(model_type="gemma", model_class="GemmaForCausalLM", norm_offset=1.0),
    "gemma2": Architecture(
        model_type="gemma2", model_class="Gemma2ForCausalLM", layer_names=_GEMMA_LAYER_NAMES, norm_offset=1.0
    ),
    "gemma3": Architecture(
        model_type="gemma3_text", model_class="Gemma3ForCausalLM", layer_names=_GEMMA_LAYER_NAMES, norm_offset=1.0
    ),
    "phi3": Architecture(
        model_type="phi3",
        model_class="Phi3ForCausalLM",
        layer_names={"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
    ),
}


def architecture_of(file: GGUFFile) -> Architecture:
    """The file's architecture. Raises `ModelLoadError` naming those that are known."""
    try:
        return ARCHITECTURES[file.architecture]
    except KeyError:
        raise ModelLoadError(
            f"{file.path.name} is of architecture {file.architecture!r}, which cannot be converted from GGUF",
            hint=f"Known are {', '.join(ARCHITECTURES)}. Use the model's safetensors instead.",
        ) from None


def build_config(file: GGUFFile) -> dict[str, Any]:
    """The content of config.json. Raises `ModelLoadError` if the file lacks what its architecture needs."""
    arch = architecture_of(file)
    try:
        config = _common_config(file, arch)
        config |= _FAMILY_CONFIG.get(file.architecture, _no_more)(file, config)
    except (KeyError, TypeError) as error:
        raise ModelLoadError(f"{file.path.name} lacks the metadata {error} of its architecture") from error
    return config


def target_name(file: GGUFFile, name: str) -> str | None:
    """transformers' name of a tensor; None for those that are not weights. Raises `ModelLoadError` for unknown ones."""
    return None if name in _ROPE_TENSORS else _target_name(architecture_of(file), name)


def convert_tensor(file: GGUFFile, name: str, config: dict[str, Any]) -> tuple[str, Array] | None:
    """One tensor under transformers' name, in its layout, float32; None for those that are not weights."""
    target = target_name(file, name)
    if target is None:
        return None
    values = file.tensor(name)
    offset = architecture_of(file).norm_offset
    if offset and name.endswith("norm.weight"):
        values = values - offset
    return target, _reordered(file, name, values, config)


def converted_rows(file: GGUFFile, name: str, config: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The rows of one tensor in transformers' order, as the file has them: uint8 `[..., bytes of a row]`."""
    rows: np.ndarray[Any, np.dtype[np.uint8]] = _reordered(file, name, file.raw(name), config)
    return rows


def _reordered(file: GGUFFile, name: str, values: Any, config: dict[str, Any]) -> Any:
    """Rows of queries and keys as transformers has them."""
    if architecture_of(file).rotary_interleaved and ".attn_q." in name:
        return _rotary_halves(values, config["num_attention_heads"])
    if architecture_of(file).rotary_interleaved and ".attn_k." in name:
        return _rotary_halves(values, config["num_key_value_heads"])
    return values


def _target_name(arch: Architecture, name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in _TOP_NAMES:
        return f"{_TOP_NAMES[stem]}.{kind}"
    prefix, _, leaf = stem.rpartition(".")
    target = arch.layer_names.get(leaf) or _LAYER_NAMES.get(leaf)
    if not prefix.startswith("blk.") or target is None:
        raise ModelLoadError(f"the GGUF file holds the tensor {name!r}, which {arch.model_class} has no place for")
    return f"model.layers.{prefix.removeprefix('blk.')}.{target}.{kind}"


def _rotary_halves(values: Any, num_heads: int) -> Any:
    """Rows (pair, half) of each head back to (half, pair): the order transformers' rotate-half expects."""
    head_dim = values.shape[0] // num_heads
    paired = values.reshape(num_heads, head_dim // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(values.shape)


def _common_config(file: GGUFFile, arch: Architecture) -> dict[str, Any]:
    hidden = _needed(file, "embedding_length")
    heads = _needed(file, "attention.head_count")
    config = {
        "architectures": [arch.model_class],
        "model_type": arch.model_type,
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": _needed(file, "feed_forward_length"),
        "num_hidden_layers": _needed(file, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.field("attention.head_count_kv", heads),
        "head_dim": file.field("attention.key_length", hidden // heads),
        "max_position_embeddings": _needed(file, "context_length"),
        "rms_norm_eps": _needed(file, "attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope_parameters(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "use_cache": True,
        "dtype": "bfloat16",
    }
    for key in ("bos", "eos", "padding"):
        token_id = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        config[f"{key.removesuffix('ding')}_token_id"] = token_id
    return config


def _needed(file: GGUFFile, key: str) -> Any:
    value = file.field(key)
    if value is None:
        raise KeyError(f"{file.architecture}.{key}")
    return value


def _rope_parameters(file: GGUFFile) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": file.field("rope.freq_base", 10000.0)}
    if "rope_freqs.weight" in file.tensors:
        return rope | _llama3_scaling(file.tensor("rope_freqs.weight"), rope["rope_theta"])
    kind = file.field("rope.scaling.type", "none")
    if kind == "none":
        return rope
    original = file.field("rope.scaling.original_context_length", file.field("context_length"))
    factor = file.field("rope.scaling.factor", 1.0)
    if kind == "linear":
        return rope | {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return rope | {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    if kind == "longrope":
        return rope
    raise ModelLoadError(f"{file.path.name} scales its positions by {kind!r}, which is not known")


def _llama3_scaling(factors: Array, theta: float) -> dict[str, Any]:
    """Llama 3's scaling from the per-frequency divisors that llama.cpp stores in its place.

    The divisors of the lowest frequencies are the factor itself; all published models share the other three
    parameters, so the whole curve must come out again (else the file holds some other scaling).
    """
    factor = float(factors.max())
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    exponents = np.arange(len(factors)) / len(factors)
    wavelengths = 2 * math.pi * theta**exponents
    smooth = np.clip((8192 / wavelengths - 1.0) / (4.0 - 1.0), 0.0, 1.0)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if not np.allclose(factors, expected, rtol=1e-3):
        raise ModelLoadError("the GGUF file's rope_freqs are not Llama 3's position scaling, the only one known")
    return scaling


def _no_more(file: GGUFFile, config: dict[str, Any]) -> dict[str, Any]:
    return {}


def _llama_config(file: GGUFFile, config: dict[str, Any]) -> dict[str, Any]:
    if window := file.field("attention.sliding_window"):
        return {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": window}
    return {"attention_bias": "blk.0.attn_q.bias" in file.tensors, "mlp_bias": "blk.0.ffn_up.bias" in file.tensors}


def _gemma_scale(config: dict[str, Any], largest: int) -> int:
    """The largest Gemma 2 and 3 divide by another root than their head size (llama.cpp tells them by their layers)."""
    if config["num_hidden_layers"] == largest:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(config["head_dim"])


def _gemma2_config(file: GGUFFile, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "query_pre_attn_scalar": _gemma_scale(config, largest=46),
        "sliding_window": file.field("attention.sliding_window", 4096),
        "attn_logit_softcapping": file.field("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": file.field("final_logit_softcapping", 30.0),
    }


def _gemma3_config(file: GGUFFile, config: dict[str, Any]) -> dict[str, Any]:
    pattern = file.field("attention.sliding_window_pattern", 6)
    layers = range(1, config["num_hidden_layers"] + 1)
    if isinstance(pattern, list):
        kinds = ["sliding_attention" if slides else "full_attention" for slides in pattern]
    else:
        kinds = ["full_attention" if layer % pattern == 0 else "sliding_attention" for layer in layers]
    return {
        "query_pre_attn_scalar": _gemma_scale(config, largest=62),
        "sliding_window": file.field("attention.sliding_window", 512),
        "layer_types": kinds,
        "rope_parameters": {
            "full_attention": config["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": file.field("rope.freq_base_swa", 10000.0)},
        },
    }


def _phi3_config(file: GGUFFile, config: dict[str, Any]) -> dict[str, Any]:
    rope = dict(config["rope_parameters"])
    rope["partial_rotary_factor"] = file.field("rope.dimension_count", config["head_dim"]) / config["head_dim"]
    original = file.field("rope.scaling.original_context_length", config["max_position_embeddings"])
    if "rope_factors_long.weight" in file.tensors:
        rope |= {
            "rope_type": "longrope",
            "long_factor": file.tensor("rope_factors_long.weight").tolist(),
            "short_factor": file.tensor("rope_factors_short.weight").tolist(),
            "original_max_position_embeddings": original,
        }
    return {
        "rope_parameters": rope,
        "original_max_position_embeddings": original,
        "partial_rotary_factor": rope["partial_rotary_factor"],
        "sliding_window": file.field("attention.sliding_window") or None,
    }


_FAMILY_CONFIG = {
    "llama": _llama_config,
    "gemma2": _gemma2_config,
    "gemma3": _gemma3_config,
    "phi3": _phi3_config,
}
