"""What a model must show before it may serve: that a sequence's logits are its own, however it is batched.

Architectures with a recurrent or convolutional state, or with attention that wants more than keys and values, run
through transformers' attention interface without complaint and give wrong answers: their state would run on into the
packed neighbour, and be lost between steps. Such a model is refused at load.
"""

import numpy as np
import torch

from engine.device.forward_batch import BatchBuilder
from engine.errors import ModelLoadError
from engine.sampling_params import SamplingParams
from engine.scheduling.block_manager import BlockManager
from engine.scheduling.scheduled import Scheduled
from engine.scheduling.sequence import Sequence

CHECK_TOKENS = 16
CHECK_BLOCKS = 3 * CHECK_TOKENS
FOREIGN = (TypeError, AttributeError, ValueError, LookupError, NotImplementedError)
"""What a module raises that wants more than this engine gives it."""
KNOWN_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})


class CheckBatches:
    """Batches over a small cache of `CHECK_BLOCKS` blocks, of sequences with random tokens; they can be run again."""

    def __init__(self, vocab_size: int, block_size: int, device: torch.device) -> None:
        token_ids = np.random.default_rng(0).integers(0, vocab_size, CHECK_TOKENS).tolist()
        self._blocks = BlockManager(CHECK_BLOCKS, block_size, prefix_cache=False)
        builder = BatchBuilder(max_num_seqs=3, max_blocks=CHECK_TOKENS, block_size=block_size, device=device)
        self.whole = builder.build([Scheduled(self._sequence(0, token_ids), CHECK_TOKENS)])
        """One sequence of `CHECK_TOKENS` tokens in one step."""
        neighbour, sequence = self._sequence(1, token_ids[::-1][: CHECK_TOKENS // 2]), self._sequence(2, token_ids)
        self.first = builder.build([Scheduled(neighbour, neighbour.num_tokens), Scheduled(sequence, CHECK_TOKENS - 1)])
        """The same sequence behind another in one batch, all but its last token."""
        sequence.num_computed_tokens = CHECK_TOKENS - 1
        self.last = builder.build([Scheduled(sequence, 1)])
        """That token in a step alone, to be run after `first`."""

    def _sequence(self, slot: int, token_ids: list[int]) -> Sequence:
        sequence = Sequence(
            request_id=slot,
            prompt_token_ids=token_ids,
            params=SamplingParams(max_tokens=1),
            seed=0,
            max_len=len(token_ids) + 1,
        )
        sequence.slot = slot
        assert self._blocks.grow(sequence, len(token_ids))
        return sequence


def check_layers(architecture: str, text_config: object, layers: set[int]) -> None:
    """Raise ModelLoadError unless attention was reached in every layer, and is of a kind this engine has."""
    types = set(getattr(text_config, "layer_types", None) or ())
    if unknown := sorted(types - KNOWN_LAYER_TYPES):
        raise refusal(architecture, f"it has layers of the type {unknown[0]}")
    # Without an image Mllama's cross-attention layers are skipped.
    expected = set(range(getattr(text_config, "num_hidden_layers", 0)))
    missing = sorted(expected - layers - set(getattr(text_config, "cross_attention_layers", None) or ()))
    if missing or not layers:
        raise refusal(architecture, "not all of its layers attend through transformers' attention interface")


def check_batching(architecture: str, whole: torch.Tensor, last: torch.Tensor) -> None:
    """Raise ModelLoadError if logits depend on the neighbours, or on where a sequence was cut.

    Logits `[V]` in fp32 of the same token: of `CheckBatches.whole` and of `CheckBatches.last`. The bound is wide enough
    for bf16; a lost state moves the logits by their own spread.
    """
    if not moved(last, whole) <= 0.25:
        raise refusal(architecture, "its answers would depend on how requests are batched")


def moved(logits: torch.Tensor, others: torch.Tensor) -> float:
    """How far `logits` `[..., V]` lie from `others`, on average, in units of the spread of `others`.

    What a row has in common does not count, since probabilities do not have it: rounding to 8 bits can move all logits
    of a row by as much as their spread, and none against another. The mean, because in bf16 a single logit may move far
    by rounding alone.
    """
    difference = logits - others
    difference = difference - difference.mean(dim=-1, keepdim=True)
    return float(difference.abs().mean() / others.std().clamp(min=1e-6))


def refusal(architecture: str, reason: str) -> ModelLoadError:
    """The error for a model that transformers could run and this engine cannot."""
    return ModelLoadError(
        f"{architecture} does not run on this engine: {reason}",
        hint="docs/models.md says which architectures do",
    )
