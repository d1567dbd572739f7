"""Tiny random models, one per family of architecture, for comparing the engine with transformers token for token."""

from pathlib import Path
from typing import Any

from engine.weights.seeing import PROCESSING_FILES

VOCAB_SIZE = 320
EOS_TOKEN_ID = 2

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": EOS_TOKEN_ID,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True},
    # A window shorter than the prompts of any test, alternating with full attention, and caps that bind.
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 256,
        "query_pre_attn_scalar": 64,
        "sliding_window": 8,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 8.0,
        "num_hidden_layers": 4,
        "tie_word_embeddings": True,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 8,
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
        "tie_word_embeddings": True,
    },
    "phi3": {"model_type": "phi3", "original_max_position_embeddings": 512, "sliding_window": 12},
    "mistral": {"model_type": "mistral", "head_dim": 16, "sliding_window": 8},
    "deepseek_v2": {
        "model_type": "deepseek_v2",
        "num_key_value_heads": 4,
        "moe_intermediate_size": 32,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": None,
        "kv_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
    },
    "deepseek_v3": {
        "model_type": "deepseek_v3",
        "num_key_value_heads": 4,
        "moe_intermediate_size": 32,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
    },
}

_CHOSEN = {"num_experts_per_tok": 2}
_SHARED = _CHOSEN | {
    "n_routed_experts": 8, "n_shared_experts": 1, "moe_intermediate_size": 32, "first_k_dense_replace": 1,
}  # fmt: skip

MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, **_CHOSEN},
    "qwen3_moe": {
        "model_type": "qwen3_moe", "head_dim": 16, "num_experts": 8, "moe_intermediate_size": 32,
        "norm_topk_prob": True, **_CHOSEN,
    },
    "qwen2_moe": {
        "model_type": "qwen2_moe", "num_experts": 8, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
        **_CHOSEN,
    },
    "glm4_moe": {"model_type": "glm4_moe", "head_dim": 16, **_SHARED},
    "dots1": {"model_type": "dots1", **_SHARED},
    "olmoe": {"model_type": "olmoe", "num_experts": 8, **_CHOSEN},
    "granitemoe": {"model_type": "granitemoe", "num_local_experts": 4, **_CHOSEN},
    "phimoe": {"model_type": "phimoe", "num_local_experts": 4, **_CHOSEN},
    "ernie4_5_moe": {
        "model_type": "ernie4_5_moe", "moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 32,
        "moe_layer_start_index": 1,
    },
    "minimax_m2": {"model_type": "minimax_m2", "num_local_experts": 4, "head_dim": 16, **_CHOSEN},
}  # fmt: skip
"""Mixtures of experts whose attention is one of the usual; compared less often than `FAMILIES`."""

BOTH_KINDS = ["sliding_attention", "full_attention"]

SIGLIP: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 14,
}

PIXTRAL = SIGLIP | {"model_type": "pixtral", "image_size": 112, "patch_size": 16, "head_dim": 16}

IDEFICS: dict[str, Any] = {
    "text_config": COMMON | {"model_type": "llama"},
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    },
    "scale_factor": 2,
    "image_token_id": 310,
    "tie_word_embeddings": False,
}

LLAVA: dict[str, Any] = {
    "model_type": "llava",
    "text_config": COMMON | {"model_type": "llama"},
    "image_token_index": 310,
    "vision_feature_select_strategy": "default",
    "vision_feature_layer": -2,
    "tie_word_embeddings": False,
}

WHOLE = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}

VISION_FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {
        "model_type": "qwen2_5_vl",
        "text_config": COMMON
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}},
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        },
        "image_token_id": 310,
        "video_token_id": 311,
        "vision_start_token_id": 312,
        "vision_end_token_id": 313,
        "tie_word_embeddings": False,
    },
    "mllama": {
        "model_type": "mllama",
        "text_config": COMMON | {"num_hidden_layers": 4, "cross_attention_layers": [1, 3]},
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "attention_heads": 2,
            "num_hidden_layers": 3,
            "num_global_layers": 1,
            "intermediate_layers_indices": [0, 2],
            "vision_output_dim": 96,
            "image_size": 28,
            "patch_size": 14,
            "max_num_tiles": 4,
        },
        "image_token_index": VOCAB_SIZE,
    },
    "qwen3_vl": {
        "model_type": "qwen3_vl",
        "text_config": COMMON
        | {
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 3, 3],
                "mrope_interleaved": True,
            },
        },
        "vision_config": {
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        "image_token_id": 310,
        "video_token_id": 311,
        "vision_start_token_id": 312,
        "vision_end_token_id": 313,
        "tie_word_embeddings": False,
    },
    "idefics3": IDEFICS | {"model_type": "idefics3"},
    "smolvlm": IDEFICS | {"model_type": "smolvlm"},
    "internvl": {
        "model_type": "internvl",
        "text_config": COMMON | {"model_type": "qwen2"},
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [56, 56],
            "patch_size": [14, 14],
        },
        "image_token_id": 310,
        "image_seq_length": 4,
    },
    "llava": LLAVA | {"vision_config": SIGLIP | {"model_type": "clip_vision_model", "image_size": 56}},
    "llava_siglip": LLAVA
    | {
        "vision_config": SIGLIP | {"image_size": 56},
        "vision_feature_select_strategy": "full",
        "vision_feature_layer": -1,
    },
    "pixtral": LLAVA | {"vision_config": PIXTRAL, "vision_feature_select_strategy": "full", "vision_feature_layer": -1},
    "mistral3": LLAVA
    | {
        "model_type": "mistral3",
        "text_config": COMMON | {"model_type": "mistral", "head_dim": 16},
        "vision_config": PIXTRAL,
        "vision_feature_layer": -1,
        "spatial_merge_size": 2,
    },
    "llava_onevision": LLAVA
    | {
        "model_type": "llava_onevision",
        "text_config": COMMON | {"model_type": "qwen2"},
        "vision_config": SIGLIP | {"image_size": 56},
        "image_token_index": 310,
        "video_token_index": 311,
        "image_grid_pinpoints": [[56 * a, 56 * b] for a in range(1, 4) for b in range(1, 4)],
        "vision_aspect_ratio": "anyres_max_4",
        "vision_feature_select_strategy": "full",
        "vision_feature_layer": -1,
    },
    # Images longer than the window.
    "gemma3_vision": {
        "model_type": "gemma3",
        "text_config": COMMON | FAMILIES["gemma3"] | {"model_type": "gemma3_text", "tie_word_embeddings": False},
        "vision_config": SIGLIP | {"image_size": 112},
        "mm_tokens_per_image": 16,
        "image_token_index": 310,
        "boi_token_index": 311,
        "eoi_token_index": 312,
        "tie_word_embeddings": False,
    },
}
"""Models that see, here with text alone."""


def auto_class(config: Any) -> Any:
    """transformers' class of auto-classes for a configuration."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM


def build_tiny_model(family: str, directory: Path, *, seed: int = 0, two_layers: bool = False) -> Path:
    """Save a random fp32 model of `family` into `directory`, which is returned; with two layers, one of each kind.

    Weights are an order of magnitude larger than a fresh initialisation's, so that greedy outputs vary from token to
    token and depend on the whole prompt: a wrong position or mask then changes them.
    """
    import torch
    from transformers import AutoConfig

    options = VISION_FAMILIES[family] if family in VISION_FAMILIES else COMMON | (FAMILIES | MIXTURES)[family]
    if two_layers:
        kinds = "layer_types" in options.get("text_config", options)
        text = {"num_hidden_layers": 2} | ({"layer_types": BOTH_KINDS} if kinds else {})
        options = options | ({"text_config": options["text_config"] | text} if "text_config" in options else text)
    config = AutoConfig.for_model(**options)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = auto_class(config).from_config(config, dtype=torch.float32)
    # A tied head would otherwise find the input token again, whatever the layers add.
    embedding_scale = 0.02 if getattr(config, "tie_word_embeddings", False) else 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                scale = embedding_scale if "embed_tokens" in name else 1.5 * parameter.shape[-1] ** -0.5
                parameter.normal_(0.0, scale, generator=generator)
            elif "norm" in name:
                parameter.add_(torch.empty_like(parameter).uniform_(-0.3, 0.3, generator=generator))
            else:
                parameter.uniform_(-0.5, 0.5, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.uniform_(-0.1, 0.1, generator=generator)
    model.save_pretrained(directory)
    if "vision_config" in options:  # without this nothing is seen
        (directory / PROCESSING_FILES[0]).write_text("{}")
    return directory
