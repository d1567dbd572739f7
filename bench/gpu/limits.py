"""The least time a step can take, from the bytes it must move and the operations it must do.

Two numbers for each: bytes over the bandwidth of a copy, and operations over the rate of a large product. A decoding
step reads the weights once, less an input embedding that is not tied to the head, of which it reads a row for each
token, and the keys and values of all its sequences. A prompt's tokens each take two operations for every weight of a
linear, less the head, and the attention of each token four for every key it sees and number of its queries.
"""

from dataclasses import dataclass
from typing import Any

import torch

from bench.gpu.timing import Ceilings
from engine.messages import EngineInfo

PROMPT, ANSWER = 1024, 1024
"""The workload of the offline part."""


class LeftOut(Exception):
    """Why something is not measured on this device, which is no failure."""


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

    def flops(self, ceilings: Ceilings) -> float:
        """The rate that bounds the linears."""
        return (ceilings.fp8_flops or ceilings.flops) if self.is_fp8 else ceilings.flops

    def decode_seconds(self, ceilings: Ceilings, batch: float, context: float) -> float:
        """A step of `batch` sequences of `context` tokens."""
        work = batch * (self.hidden_flops / self.flops(ceilings) + self.head_flops / ceilings.flops)
        weights = max(self.step_bytes / ceilings.bytes_per_second, work)
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


def costs_of(model: torch.nn.Module, text_config: Any, info: EngineInfo, *, is_fp8: bool) -> Costs:
    """Read off a loaded model, as the engine has changed it."""
    embedding = int(info.vocab_size) * int(text_config.hidden_size)
    tied = bool(getattr(text_config, "tie_word_embeddings", False))
    linears = info.num_parameters - embedding * (1 if tied else 2)
    weights = stored_bytes(model) or info.weights_bytes
    if not tied:
        weights -= embedding * model.dtype.itemsize  # type: ignore[union-attr, operator]
    heads = int(text_config.num_attention_heads)
    width = int(getattr(text_config, "head_dim", None) or text_config.hidden_size // heads)
    return Costs(
        step_bytes=float(weights),
        hidden_flops=2.0 * linears,
        head_flops=2.0 * embedding,
        attention_flops=4.0 * heads * width * int(text_config.num_hidden_layers),
        kv_bytes=info.kv_bytes / info.kv_tokens,
        is_fp8=is_fp8,
    )


def stored_bytes(model: torch.nn.Module) -> int:
    """Of all parameters and buffers on a CUDA device, shared ones once; 0 elsewhere, where some are packed."""
    tensors = [*model.parameters(), *model.buffers()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.is_cuda}
    return sum(storages.values())
