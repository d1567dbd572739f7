"""GGUF files written from models and tokenizers at hand, the way llama.cpp's converter lays them out."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from safetensors.torch import load_file

F32 = GGMLQuantizationType.F32

BYTE_LETTERS = [chr(code) for code in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]]
BYTE_LETTERS += [chr(256 + rank) for rank in range(256 - len(BYTE_LETTERS))]

_ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}


def write_model(
    path: Path, model_dir: Path, *, kind: GGMLQuantizationType = F32, values: GGMLQuantizationType | None = None
) -> None:
    """A GGUF file of the tiny model in `model_dir`, with a vocabulary of bytes; `values` is the kind of `attn_v`."""
    config = json.loads((model_dir / "config.json").read_text())
    arch = _ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(path, arch)
    write_metadata(writer, config)
    write_byte_vocabulary(writer, config["vocab_size"])
    names = gguf.get_tensor_name_map(
        next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch), config["num_hidden_layers"]
    )
    for name, tensor in load_file(model_dir / "model.safetensors").items():
        numbers = _as_stored(arch, name, tensor.float().numpy(), config)
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        asked = values if values is not None and "v_proj" in name else kind
        stored = asked if numbers.ndim == 2 and numbers.shape[-1] % 32 == 0 else F32
        writer.add_tensor(target, gguf.quantize(numbers, stored), raw_dtype=stored)
    _finish(writer)


def write_metadata(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """The keys that describe a model's shape."""
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config["rope_parameters"]
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def write_byte_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """A byte-level vocabulary: three control tokens, the 256 bytes, fillers, no merges but one."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *BYTE_LETTERS, "ab"]
    tokens += [f"filler{index}" for index in range(size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (size - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages[0]['content'] }}")


def write_tokenizer(path: Path, tokenizer: dict[str, Any], *, pre: str | None, bos_token: str | None) -> None:
    """A GGUF file without tensors but one, with the vocabulary of a tokenizer.json."""
    model = tokenizer["model"]
    tokens = dict(model["vocab"]) | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    added = {token["content"]: 3 if token["special"] else 4 for token in tokenizer["added_tokens"]}
    ordered = sorted(tokens, key=lambda token: tokens[token])
    writer = gguf.GGUFWriter(path, "gemma2" if pre is None else "qwen2")
    writer.add_context_length(4096)
    writer.add_tokenizer_model("gpt2" if pre else "llama")
    if pre:
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    else:
        writer.add_token_scores([-float(tokens[token]) for token in ordered])
        writer.add_unk_token_id(tokens[model["unk_token"]])
    types = [added.get(token, 6 if not pre and token.startswith("<0x") else 1) for token in ordered]
    # llama.cpp writes the spaces of added tokens out.
    spelled = [token.replace("\u2581", " ") if added.get(token) == 4 else token for token in ordered]
    writer.add_token_list(spelled if not pre else ordered)
    writer.add_token_types(types)
    if bos_token:
        writer.add_bos_token_id(tokens[bos_token])
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    _finish(writer)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _as_stored(arch: str, name: str, values: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    if arch.startswith("gemma") and name.endswith("norm.weight"):
        return values + 1.0
    for projection, heads in (("q_proj", config["num_attention_heads"]), ("k_proj", config["num_key_value_heads"])):
        if arch == "llama" and projection in name:
            halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
            return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
    return values
