"""The least time a step can take, from the bytes it must move and the operations it must do.

Two numbers for each: bytes over the bandwidth of a copy, and operations over the rate of a large product. A decoding
step reads the weights once, less an input embedding that is not tied to the head, of which it reads a row for each
token, and the keys and values of all its sequences. A prompt's tokens each take two operations for every weight of a
linear, less the head, and the attention of each token four for every key it sees and number of its queries. Of a
mixture of experts a token takes those that it goes to, and a step reads those that any of its tokens does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.messages import EngineInfo

PROMPT, ANSWER = 1024, 1024
"""The workload of `Costs.offline_rate`."""
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device does at best."""

    bytes_per_second: float
    """Copied: read and written bytes both count."""
    flops: float
    """Operations a second in products of bf16, or of fp32 where a CPU computes in that."""
    fp8_flops: float | None = None
    """The same in e4m3 with scales by row and column; None where the device has none."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What a model's steps must move and do."""

    step_bytes: float
    """Of weights, in a decoding step."""
    hidden_flops: float
    """A token, without the output head."""
    head_flops: float
    attention_flops: float
    """A pair of query and key, over all layers."""
    kv_bytes: float
    """A token, over all layers."""
    is_fp8: bool = False
    """Whether the linears compute in FP8."""
    routed_bytes: float = 0.0
    """Of `step_bytes`, those of experts: a step of few tokens does not read them all."""
    routed_share: float = 1.0
    """The part of them that a token goes to."""

    def flops(self, ceilings: Ceilings) -> float:
        """The rate that bounds the linears."""
        return (ceilings.fp8_flops or ceilings.flops) if self.is_fp8 else ceilings.flops

    def decode_seconds(self, ceilings: Ceilings, batch: float, context: float) -> float:
        """A step of `batch` sequences of `context` tokens."""
        work = batch * (self.hidden_flops / self.flops(ceilings) + self.head_flops / ceilings.flops)
        read = self.step_bytes - self.routed_bytes * (1 - min(1.0, batch * self.routed_share))
        weights = max(read / ceilings.bytes_per_second, work)
        return weights + batch * context * self.kv_bytes / ceilings.bytes_per_second

    def prompt_seconds(self, ceilings: Ceilings, tokens: float) -> float:
        """One prompt, of which every token sees half of all on average."""
        attention = self.attention_flops * tokens * tokens / 2
        return tokens * self.hidden_flops / self.flops(ceilings) + attention / ceilings.flops

    def offline_rate(self, ceilings: Ceilings, sequences: float) -> float:
        """Answered tokens a second of so many sequences at a time, each answered token with one of a prompt."""
        step = self.decode_seconds(ceilings, sequences, PROMPT + ANSWER / 2)
        return sequences / (step + sequences * self.hidden_flops / self.flops(ceilings))

    def best_offline_rate(self, ceilings: Ceilings, kv_tokens: float) -> float:
        """The rate of the most sequences whose keys and values fit."""
        return self.offline_rate(ceilings, max(1.0, kv_tokens / (PROMPT + ANSWER / 2)))

    def load_seconds(self, ceilings: Ceilings, lengths: Sequence[tuple[int, int]], batch: int) -> float:
        """Requests of these lengths, of prompt and answer, that all come at once, at most `batch` at a time."""
        answered = sum(answer for _, answer in lengths)
        steps = max([answered / batch, *(answer for _, answer in lengths)])
        context = sum(answer * (prompt + answer / 2) for prompt, answer in lengths) / answered
        prompts = sum(self.prompt_seconds(ceilings, prompt) for prompt, _ in lengths)
        return prompts + steps * self.decode_seconds(ceilings, answered / steps, context)


def costs_of(info: EngineInfo, text_config: Mapping[str, Any], *, weights: int = 0, is_fp8: bool = False) -> Costs:
    """Read off what an engine says of its model and the model's configuration (of its text part, where it sees).

    `weights` are bytes that are kept of all parameters, where that is known better than the engine says it.
    """
    embedding = int(info.vocab_size) * int(text_config["hidden_size"])
    is_tied = bool(text_config.get("tie_word_embeddings", False))
    linears = info.num_parameters - embedding * (1 if is_tied else 2)
    routed, share = routed_numbers(text_config)
    step_bytes = weights or info.weights_bytes
    item_bytes = ITEM_BYTES.get(info.dtype.removeprefix("torch."), 2)
    if not is_tied:
        step_bytes -= embedding * item_bytes
    heads = int(text_config["num_attention_heads"])
    width = int(text_config.get("head_dim") or int(text_config["hidden_size"]) // heads)
    pair = 2 * width  # numbers of a key and of a value
    if text_config.get("kv_lora_rank") is not None:  # attention is on latents
        pair = 2 * int(text_config["kv_lora_rank"]) + int(text_config["qk_rope_head_dim"])
    return Costs(
        step_bytes=float(step_bytes),
        hidden_flops=2.0 * (linears - routed * (1 - share)),
        head_flops=2.0 * embedding,
        attention_flops=2.0 * heads * pair * int(text_config["num_hidden_layers"]),
        kv_bytes=info.kv_bytes / info.kv_tokens,
        is_fp8=is_fp8,
        routed_bytes=float(routed * (1 if is_fp8 else item_bytes)),
        routed_share=share,
    )


def routed_numbers(text_config: Mapping[str, Any]) -> tuple[int, float]:
    """Numbers of all experts that tokens are sent to, and the part of them that one token goes to; 0 and 1 of none."""

    def first(*names: str) -> int:
        return next((int(text_config[name]) for name in names if text_config.get(name)), 0)

    experts = first("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
    chosen = first("num_experts_per_tok", "moe_k")
    if not experts or not chosen:
        return 0, 1.0
    layers = range(int(text_config["num_hidden_layers"]))
    begin = first("first_k_dense_replace", "moe_layer_start_index")
    step = first("decoder_sparse_step", "moe_layer_interval") or 1
    dense = text_config.get("mlp_only_layers") or ()
    mixtures = sum(layer >= begin and (layer + 1) % step == 0 and layer not in dense for layer in layers)
    width = first("moe_intermediate_size", "intermediate_size")
    return mixtures * experts * 3 * int(text_config["hidden_size"]) * width, chosen / experts
