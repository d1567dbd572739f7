"""The shape that a configuration describes, whole or one rank's part of it. No code of the model is run.

Decoders of the kinds that are listed here are counted by their formulas, to the number; tests hold that to the models
that transformers builds, and to the parts of them that ranks cut out. Of another kind nothing is said. What sees is
counted in `engine.sizing.towers`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine.sizing.cache import LayerShape
from engine.sizing.shape import Experts, Linear, ModelShape
from engine.sizing.split import Split, split_of, vocabulary_rows
from engine.sizing.towers import TEXT_TYPES, decoder_of, tower_of

LATENT_KINDS = frozenset(("deepseek_v2", "deepseek_v3"))
DENSE_KINDS = frozenset(
    {
        "llama", "mistral", "phi3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "mllama_text_model",
        "qwen2_5_vl_text",
    }
)  # fmt: skip
KINDS = LATENT_KINDS | DENSE_KINDS
MLLAMA_TOKENS = 8
"""Which the input embedding of mllama has beyond its vocabulary."""


def shape_of(config: Mapping[str, Any], ranks: int = 1) -> ModelShape | None:
    """The shape that a config.json describes, or the part of it that each of several ranks has.

    None for a kind that is not listed, and for what is no configuration. Raises ConfigError for ranks that do not
    divide the model.
    """
    decoder = decoder_of(config) if config.get("model_type") in TEXT_TYPES else config
    kind = decoder.get("model_type")
    if kind not in KINDS:
        return None
    try:
        split = _whole(decoder) if ranks == 1 else split_of(decoder, ranks)
        shape = _latent(decoder, split) if kind in LATENT_KINDS else _dense(decoder, str(kind), split)
        return replace(shape, tower=tower_of(config))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _whole(config: Mapping[str, Any]) -> Split:
    heads = int(config["num_attention_heads"])
    return Split(1, heads, int(config.get("num_key_value_heads") or heads))


def _dense(config: Mapping[str, Any], kind: str, split: Split) -> ModelShape:
    hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    dim = int(config.get("head_dim") or hidden // split.heads)
    heads, kv_heads = split.local_heads, split.local_kv_heads
    bias = bool(config.get("attention_bias", False))
    qkv_bias = bias or kind in ("qwen2", "qwen2_5_vl_text")
    attention = (
        Linear(hidden, heads * dim, qkv_bias),
        *(Linear(hidden, kv_heads * dim, qkv_bias) for _ in range(2)),
        Linear(heads * dim, hidden, bias),
    )
    mlp = _mlp(hidden, int(config["intermediate_size"]) // split.ranks, bool(config.get("mlp_bias", False)))
    if kind == "phi3":  # q, k and v are one linear there, gate and up another
        attention = (Linear(hidden, (heads + 2 * kv_heads) * dim), attention[-1])
        mlp = (Linear(hidden, 2 * mlp[-1].inputs), mlp[-1])
    norms = hidden * (4 if kind in ("gemma2", "gemma3_text") else 2)
    norms += 2 * dim if kind in ("qwen3", "gemma3_text") else 0
    crossing = set(config["cross_attention_layers"]) if kind == "mllama_text_model" else set()
    across = (  # rank 0 attends to images alone, but each rank has the weights
        Linear(hidden, split.heads * dim, stays=True),
        *(Linear(hidden, split.kv_heads * dim, stays=True) for _ in range(2)),
        Linear(split.heads * dim, hidden, stays=True),
    )
    return ModelShape(
        vocab_size=int(config["vocab_size"]),
        hidden_size=hidden,
        context=int(config["max_position_embeddings"]),
        linears=tuple((*(across if layer in crossing else attention), *mlp) for layer in range(layers)),
        embedding=_rows(config, split, MLLAMA_TOKENS if kind == "mllama_text_model" else 0) * hidden,
        head=_rows(config, split) * hidden,
        is_tied=bool(config.get("tie_word_embeddings", kind.startswith("gemma"))),
        other=layers * norms + len(crossing) * (2 * dim + 2) + hidden,  # two norms of heads there, and two gates
        cache={layer: LayerShape(kv_heads, dim, dim) for layer in range(layers) if layer not in crossing},
        ranks=split.ranks,
    )


def _latent(config: Mapping[str, Any], split: Split) -> ModelShape:
    """DeepSeek V2 and V3: keys, values and often queries from few numbers, and experts behind the first layers."""
    hidden, layers, heads = int(config["hidden_size"]), int(config["num_hidden_layers"]), split.local_heads
    kv_rank, rope = int(config["kv_lora_rank"]), int(config["qk_rope_head_dim"])
    nope, v_dim = int(config["qk_nope_head_dim"]), int(config["v_head_dim"])
    rank = 0 if config["q_lora_rank"] is None else int(config["q_lora_rank"])
    queries = heads * (nope + rope)
    attention = (
        *((Linear(hidden, rank), Linear(rank, queries)) if rank else (Linear(hidden, queries),)),
        Linear(hidden, kv_rank + rope), Linear(kv_rank, heads * (nope + v_dim), stays=True),
        Linear(heads * v_dim, hidden),
    )  # fmt: skip
    width, number = int(config["moe_intermediate_size"]), int(config["n_routed_experts"])
    dense = min(layers, int(config["first_k_dense_replace"]))
    shared = _mlp(hidden, width * int(config["n_shared_experts"]) // split.ranks)
    first = (*attention, *_mlp(hidden, int(config["intermediate_size"]) // split.ranks))
    return ModelShape(
        vocab_size=int(config["vocab_size"]),
        hidden_size=hidden,
        context=int(config["max_position_embeddings"]),
        linears=(first,) * dense + ((*attention, *shared),) * (layers - dense),
        embedding=_rows(config, split) * hidden,
        head=_rows(config, split) * hidden,
        is_tied=bool(config.get("tie_word_embeddings", False)),
        other=layers * (2 * hidden + rank + kv_rank) + hidden + (layers - dense) * number * hidden,
        cache=dict.fromkeys(range(layers), LayerShape(1, kv_rank + rope, kv_rank, is_latent=True)),
        queries=heads * (kv_rank + rope),
        experts=Experts(number, int(config["num_experts_per_tok"]), hidden, width // split.ranks),
        expert_layers=layers - dense,
        ranks=split.ranks,
    )


def _mlp(hidden: int, width: int, bias: bool = False) -> tuple[Linear, ...]:
    """Gate, up and down."""
    return Linear(hidden, width, bias), Linear(hidden, width, bias), Linear(width, hidden, bias)


def _rows(config: Mapping[str, Any], split: Split, further: int = 0) -> int:
    """Tokens of a rank's part of the embeddings or the head, which may have further ones."""
    return vocabulary_rows(int(config["vocab_size"]) + further, split.ranks)
