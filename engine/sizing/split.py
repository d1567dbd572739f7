"""What of a model's sizes is divided among ranks (tensor parallelism), and which numbers of ranks divide it.

Attention is divided by heads, each MLP and each expert by its inner width, embeddings and the output head by the
vocabulary, which need not come out even. Where there are fewer KV heads than ranks, several ranks keep the same one.
Latents (MLA) are kept whole by every rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.config import MOST_RANKS, EngineConfig
from engine.errors import ConfigError
from engine.sizing.towers import decoder_of
from engine.weights.seeing import IMAGE_TYPES
from engine.weights.sources import told_config

SPLIT_KINDS = frozenset(
    {
        "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "deepseek_v3", "mllama_text_model",
        "qwen2_5_vl_text",
    }
)  # fmt: skip
"""`model_type` of the decoders that `engine.models.split` knows how to cut."""

_WITH_TEXT = frozenset(kind.partition("/")[0] for kind in IMAGE_TYPES)
"""`model_type` of whole models whose decoder is of another type, which their own configuration need not name."""


@dataclass(frozen=True, slots=True)
class Split:
    """A decoder's heads, in all and as each rank has them."""

    ranks: int
    heads: int
    kv_heads: int

    @property
    def local_heads(self) -> int:
        """Query heads of a rank."""
        return self.heads // self.ranks

    @property
    def local_kv_heads(self) -> int:
        """KV heads of a rank, of which several ranks may have the same."""
        return max(1, self.kv_heads // self.ranks)

    def first_kv_head(self, rank: int) -> int:
        """The first KV head that a rank has."""
        return rank * self.kv_heads // self.ranks


def check_ranks(config: EngineConfig) -> None:
    """Raise ConfigError where ranks cannot share a model, as far as its files tell that before anything is loaded.

    Reads what is on this machine, without torch or a network. Where nothing is told, `split_of` judges later: of what
    is to be downloaded, and of sizes that a config.json leaves to the defaults of its type.
    """
    if config.tensor_parallel == 1:
        return
    told = told_config(config.source, config.revision)
    if told is None:
        return
    decoder = decoder_of(told)
    kind = decoder.get("model_type")
    if kind is not None and kind not in _WITH_TEXT:
        _check_kind(kind, config.tensor_parallel)
    _check_sizes(decoder, config.tensor_parallel)


def split_of(config: Mapping[str, Any], ranks: int) -> Split:
    """How a decoder with this configuration, of its text part where it sees, is divided. Raises ConfigError.

    Whether its sizes can be divided at all is checked here, before a weight is read.
    """
    _check_kind(config.get("model_type"), ranks)
    _check_sizes(config, ranks)
    heads = int(config["num_attention_heads"])
    return Split(ranks, heads, _sizes(config).get(_KV_HEADS, heads))


def _check_kind(kind: object, ranks: int) -> None:
    if kind not in SPLIT_KINDS:
        raise ConfigError(
            f"tensor_parallel: {ranks} was asked for, and models of the type {kind} are not divided here",
            hint="these are: " + ", ".join(sorted(SPLIT_KINDS)),
        )


def _check_sizes(config: Mapping[str, Any], ranks: int) -> None:
    for name, size in _sizes(config).items():
        if not _divides(ranks, name, size):
            raise ConfigError(
                f"tensor_parallel: {ranks} does not divide the model's {size} {name}",
                hint=f"these numbers of ranks divide the model: {', '.join(map(str, fitting_ranks(config)))}",
            )


def fitting_ranks(config: Mapping[str, Any]) -> list[int]:
    """The numbers of ranks that a decoder of a kind that is known can be divided among, in order."""
    sizes = _sizes(config)
    return [ranks for ranks in range(1, MOST_RANKS + 1) if all(_divides(ranks, *size) for size in sizes.items())]


def most_ranks(config: Mapping[str, Any], limit: int) -> int:
    """The largest number of ranks, and no more than `limit`, that a model can be divided among; 1 is always one."""
    decoder = decoder_of(config)
    if decoder.get("model_type") not in SPLIT_KINDS:
        return 1
    return max(ranks for ranks in fitting_ranks(decoder) if ranks <= limit)


def vocabulary_rows(vocab_size: int, ranks: int) -> int:
    """Rows of an embedding, or of the head, that each rank has; the last may have some too many."""
    return -(-vocab_size // ranks)


_HEADS = "attention heads"
_KV_HEADS = "KV heads"
_BLOCKS = "FP8 blocks across an expert"


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """What is to be divided, by its name in a message, as far as the configuration tells it."""
    sizes = {
        _HEADS: config.get("num_attention_heads"),
        _KV_HEADS: config.get("num_key_value_heads") if config.get("kv_lora_rank") is None else None,
        "inner numbers of an MLP (intermediate_size)": config.get("intermediate_size"),
        "inner numbers of an expert (moe_intermediate_size)": config.get("moe_intermediate_size"),
        _BLOCKS: _expert_blocks(config),
    }
    return {name: size for name, size in sizes.items() if isinstance(size, int) and size > 0}


def _expert_blocks(config: Mapping[str, Any]) -> int | None:
    """The weights of experts stay in the blocks that the checkpoint has; None where they are in none."""
    width, quantization = config.get("moe_intermediate_size"), config.get("quantization_config")
    match quantization.get("weight_block_size") if isinstance(quantization, Mapping) else None:
        case [int(block), *_] if block > 0 and isinstance(width, int):
            return width // block
    return None


def _divides(ranks: int, name: str, size: int) -> bool:
    return size % ranks == 0 or (name == _KV_HEADS and ranks % size == 0)
