"""What a configuration says of a model's sizes: its weights, and what its layers keep of a token. No code of it is run.

Decoders of the kinds that are listed here are counted by their formulas, to the number; tests hold that to the models
that transformers builds. Of another kind nothing is said.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.sizing.cache import LayerShape

LATENT_KINDS = frozenset(("deepseek_v2", "deepseek_v3"))
KINDS = LATENT_KINDS | {"llama", "mistral", "phi3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"}
FP8_CAPABILITY = (8, 9)
"""Of the first GPUs whose matrix units take e4m3."""
FP8_MULTIPLE = 16
"""What both sides of a weight must be a multiple of to be in FP8 (`torch._scaled_mm`)."""
SCALE_BYTES = 4
"""Of an output of a linear in FP8, beside a bias in 16 bits."""


@dataclass(frozen=True, slots=True)
class Linear:
    """One product of a layer: numbers of inputs and of outputs."""

    inputs: int
    outputs: int
    has_bias: bool = False

    @property
    def numbers(self) -> int:
        """Of its weight and its bias."""
        return self.inputs * self.outputs + self.outputs * self.has_bias

    @property
    def fits_fp8(self) -> bool:
        """Whether its weight can be in FP8."""
        return self.inputs % FP8_MULTIPLE == self.outputs % FP8_MULTIPLE == 0


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder in numbers."""

    vocab_size: int
    hidden_size: int
    context: int
    """The model's own."""
    linears: tuple[tuple[Linear, ...], ...]
    """Of each layer."""
    other: int
    """Numbers that are in no layer's linear: embeddings, output head, norms, routers."""
    cache: Mapping[int, LayerShape]
    has_experts: bool
    queries: int = 0
    """Numbers of a token's queries, where these are in the space of latents."""

    @property
    def parameters(self) -> int:
        """All its numbers."""
        return self.other + sum(linear.numbers for layer in self.linears for linear in layer)

    @property
    def widest(self) -> int:
        """Inputs of the widest product, which the last of an MLP is, or what queries of latents take."""
        return max(self.queries, *(linear.inputs for layer in self.linears for linear in layer))

    def weight_bytes(self, itemsize: int) -> int:
        """Of all weights, of so many bytes each."""
        return self.parameters * itemsize

    def fp8_weight_bytes(self, itemsize: int) -> int:
        """The same with the linears of all layers but the last in FP8, as `quantize_linears` leaves them."""
        saved = 0
        for linear in self.in_fp8:
            saved += linear.inputs * linear.outputs * (itemsize - 1) - SCALE_BYTES * linear.outputs
            saved -= 0 if linear.has_bias else linear.outputs * itemsize
        return self.weight_bytes(itemsize) - saved

    @property
    def in_fp8(self) -> list[Linear]:
        """The linears that `quantization: fp8` turns into FP8."""
        layers = self.linears[:-1] if len(self.linears) > 1 else self.linears
        return [linear for layer in layers for linear in layer if linear.fits_fp8]


def shape_of(config: Mapping[str, Any]) -> ModelShape | None:
    """The shape that a config.json describes; None for a kind that is not listed, and for what is no configuration."""
    kind = config.get("model_type")
    if kind not in KINDS:
        return None
    try:
        return _latent(config) if kind in LATENT_KINDS else _dense(config, str(kind))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _dense(config: Mapping[str, Any], kind: str) -> ModelShape:
    hidden, layers, heads = (int(config[name]) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    kv_heads = int(config.get("num_key_value_heads") or heads)
    dim = int(config.get("head_dim") or hidden // heads)
    bias = bool(config.get("attention_bias", False))
    qkv_bias = bias or kind == "qwen2"
    layer = (
        Linear(hidden, heads * dim, qkv_bias),
        *(Linear(hidden, kv_heads * dim, qkv_bias) for _ in range(2)),
        Linear(heads * dim, hidden, bias),
        *_mlp(hidden, int(config["intermediate_size"]), bool(config.get("mlp_bias", False))),
    )
    norms = hidden * (4 if kind in ("gemma2", "gemma3_text") else 2)
    norms += 2 * dim if kind in ("qwen3", "gemma3_text") else 0
    if kind == "phi3":  # q, k and v are one linear there, gate and up another
        layer = (
            Linear(hidden, (heads + 2 * kv_heads) * dim), layer[3],
            Linear(hidden, 2 * layer[-1].inputs), layer[-1],
        )  # fmt: skip
    tied = bool(config.get("tie_word_embeddings", kind.startswith("gemma")))
    return ModelShape(
        vocab_size=int(config["vocab_size"]),
        hidden_size=hidden,
        context=int(config["max_position_embeddings"]),
        linears=(layer,) * layers,
        other=_ends(config, tied) + layers * norms,
        cache=dict.fromkeys(range(layers), LayerShape(kv_heads, dim, dim)),
        has_experts=False,
    )


def _latent(config: Mapping[str, Any]) -> ModelShape:
    """DeepSeek V2 and V3: keys, values and often queries from few numbers, and experts behind the first layers."""
    hidden, layers, heads = (int(config[name]) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    kv_rank, rope = int(config["kv_lora_rank"]), int(config["qk_rope_head_dim"])
    nope, v_dim = int(config["qk_nope_head_dim"]), int(config["v_head_dim"])
    rank = 0 if config["q_lora_rank"] is None else int(config["q_lora_rank"])
    queries = heads * (nope + rope)
    attention = (
        *((Linear(hidden, rank), Linear(rank, queries)) if rank else (Linear(hidden, queries),)),
        Linear(hidden, kv_rank + rope), Linear(kv_rank, heads * (nope + v_dim)), Linear(heads * v_dim, hidden),
    )  # fmt: skip
    experts, width = int(config["n_routed_experts"]), int(config["moe_intermediate_size"])
    dense = int(config["first_k_dense_replace"])
    shared = _mlp(hidden, width * int(config["n_shared_experts"]))
    first = (*attention, *_mlp(hidden, int(config["intermediate_size"])))
    norms = 2 * hidden + rank + kv_rank
    routed = (layers - dense) * experts * (3 * hidden * width + hidden)
    return ModelShape(
        vocab_size=int(config["vocab_size"]),
        hidden_size=hidden,
        context=int(config["max_position_embeddings"]),
        linears=(first,) * dense + ((*attention, *shared),) * (layers - dense),
        other=_ends(config, bool(config.get("tie_word_embeddings", False))) + layers * norms + routed,
        cache=dict.fromkeys(range(layers), LayerShape(1, kv_rank + rope, kv_rank, is_latent=True)),
        has_experts=True,
        queries=heads * (kv_rank + rope),
    )


def _mlp(hidden: int, width: int, bias: bool = False) -> tuple[Linear, Linear, Linear]:
    """Gate, up and down."""
    return Linear(hidden, width, bias), Linear(hidden, width, bias), Linear(width, hidden, bias)


def _ends(config: Mapping[str, Any], tied: bool) -> int:
    """Numbers of the embeddings, of the output head unless that is the same, and of the last norm."""
    hidden = int(config["hidden_size"])
    return int(config["vocab_size"]) * hidden * (1 if tied else 2) + hidden
