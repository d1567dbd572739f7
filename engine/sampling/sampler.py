"""From logits to tokens, for all sampling rows of a step at once, with one copy back to the host; for CPUs.

`engine.sampling.device_sampler` does the same on CUDA devices.

Order: penalties, logit bias, suppressed tokens → bitmask of constrained rows → temperature → top_k, top_p, min_p → one
draw.

**Noise.** Row r at position p draws with one uniform number u(seed, p) from a counter-based generator, and takes the
first token, in id order, at which the cumulative probability of the kept tokens exceeds u. Neighbours, batch shape and
preemption do not enter.

**Filters** are thresholds on probabilities, not orders of tokens: top_k keeps what is at least as probable as the k-th,
top_p what is at least as probable as the last token of the nucleus, min_p what is at least min_p times the best. Equal
tokens are kept or dropped together, so the order of ties can never matter, and the thresholds need only the largest
probabilities: those of `PREFIX` tokens. Rows whose nucleus is not complete within them are found by their sum, which
is exact, and get a sort of their own; the result is the same number either way.

**Log-probabilities** are of the raw logits in fp32, before everything above.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from engine.device.device import Download, to_device
from engine.messages import TokenLogprobs
from engine.noise import uniform
from engine.sampling.bitmask import BitmaskBuilder, apply_bitmask
from engine.sampling.logprobs import logprob_columns, read_logprobs
from engine.sampling.token_counts import TokenCounts
from engine.sampling_params import SamplingParams
from engine.scheduling.sequence import Sequence
from engine.scheduling.stop import suppressed_token_ids

PREFIX = 256
"""Largest probabilities looked at before a full sort is considered."""
TILE = 256
"""Tokens summed at once in the cumulative distribution."""
LEAST_DIVISOR = 1e-30
"""Temperatures and repetition penalties below this would make fp32 overflow, or be 0 in it."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a step gave, on the host: an entry for each row that samples, and one for each that scores its prompt."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]
    finite: list[bool]
    """False where the logits held a NaN or were all minus infinity: that row's token means nothing."""
    prompt_logprobs: list[list[TokenLogprobs] | None] = field(default_factory=list)
    """An entry for each of a row's `Scheduled.scored`; None where some of its logits were not finite."""
    failures: dict[int, str] = field(default_factory=dict)
    """By row: why its constraint cannot go on; that row's token means nothing."""


class Sampler:
    """Holds the per-slot token counts that penalties need; everything else comes with the sequences."""

    def __init__(self, *, max_num_seqs: int, vocab_size: int, device: torch.device) -> None:
        self._device = device
        self._counts = TokenCounts(max_num_seqs=max_num_seqs, vocab_size=vocab_size, device=device)
        self._bitmask = BitmaskBuilder(max_num_seqs=max_num_seqs, vocab_size=vocab_size)

    def sample(
        self, logits: torch.Tensor, sequences: list[Sequence], last_tokens: torch.Tensor | None = None
    ) -> "PendingSample":
        """logits `[R, V]` in the model's dtype, one row per sequence. Slots must be held while sampling.

        Tokens are written to `last_tokens` int64 `[slots]`, too, where it is given. The forward pass that computes the
        logits may still run on the device; what comes first is the host's work.
        """
        filled = self._bitmask.fill(sequences)
        params = [sequence.params for sequence in sequences]
        if all(is_plain_greedy(sequence) for sequence in sequences):
            best, token_ids = apply_bitmask(logits, filled).max(dim=-1, keepdim=True)
            columns = [token_ids.to(torch.int32), torch.isfinite(best).to(torch.int32)]
            self._note(token_ids.squeeze(1), sequences, last_tokens)
            return PendingSample(token_ids.squeeze(1), columns, params, filled.failures)
        raw = logits.float()
        finite = torch.isfinite(raw.max(dim=-1, keepdim=True).values)
        raw = torch.where(finite, raw, 0.0)  # so that a broken row cannot break the operations it shares
        token_ids = self._draw(apply_bitmask(self._adjust(raw, sequences), filled), sequences)
        columns = [token_ids.to(torch.int32).unsqueeze(1), finite.to(torch.int32)]
        most = max((p.logprobs for p in params if p.logprobs is not None), default=None)
        if most is not None:
            columns.append(logprob_columns(raw, token_ids, most))
        self._note(token_ids, sequences, last_tokens)
        return PendingSample(token_ids, columns, params, filled.failures)

    def warm_up(self, dtype: torch.dtype) -> None:
        """On a CPU nothing has to be built."""

    def _note(self, token_ids: torch.Tensor, sequences: list[Sequence], last_tokens: torch.Tensor | None) -> None:
        if last_tokens is not None:
            slots = to_device(np.array([sequence.slot for sequence in sequences], dtype=np.int64), self._device)
            last_tokens.index_copy_(0, slots, token_ids)

    def _adjust(self, raw: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
        """Bias, penalties and suppressed tokens, on a copy where there are any."""
        logits = self._penalise(raw, sequences)
        rows, tokens, values = sparse_changes(sequences)
        if not rows:
            return logits
        logits = logits.clone() if logits is raw else logits
        index = torch.tensor(rows, device=self._device), torch.tensor(tokens, device=self._device)
        added = to_device(np.array(values, dtype=np.float32), self._device)
        return logits.index_put_(index, added, accumulate=True)

    def _penalise(self, raw: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
        rows = [row for row, sequence in enumerate(sequences) if has_penalty(sequence.params)]
        if not rows:
            return raw
        self._counts.update([sequences[row] for row in rows])
        slots = to_device(np.array([sequences[row].slot for row in rows], dtype=np.int64), self._device)
        counts, in_prompt = self._counts.counts[slots], self._counts.in_prompt[slots]
        params = [sequences[row].params for row in rows]

        def column(name: str) -> torch.Tensor:
            values = np.array([getattr(p, name) for p in params], dtype=np.float32)
            return to_device(values, self._device).unsqueeze(1)

        index = to_device(np.array(rows, dtype=np.int64), self._device)
        part = raw[index]
        divisor = column("repetition_penalty").clamp_(min=LEAST_DIVISOR)
        repetition = torch.where((counts > 0) | in_prompt, divisor, 1.0)
        part = torch.where(part > 0, part / repetition, part * repetition)
        part -= column("frequency_penalty") * counts + column("presence_penalty") * (counts > 0)
        return raw.index_copy(0, index, part)

    def _draw(self, logits: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
        """int64 `[R]`: argmax where temperature is 0, else one draw."""
        greedy = logits.argmax(dim=-1)
        rows = [row for row, sequence in enumerate(sequences) if sequence.params.temperature > 0]
        if not rows:
            return greedy
        chosen = [sequences[row] for row in rows]
        seeds = np.array([sequence.seed for sequence in chosen], dtype=np.int64)
        positions = np.array([sequence.num_tokens for sequence in chosen], dtype=np.int64)
        index = to_device(np.array(rows, dtype=np.int64), self._device)
        temperature = np.array([[max(s.params.temperature, LEAST_DIVISOR)] for s in chosen], dtype=np.float32)
        # Distances from the best cannot overflow to two infinities, whose difference softmax would not know.
        scores = logits[index] - logits[index].amax(dim=-1, keepdim=True)
        probabilities = (scores / to_device(temperature, self._device)).softmax(dim=-1)
        kept = _filter(probabilities, [sequence.params for sequence in chosen])
        drawn = draw(kept, to_device(uniform(seeds, positions), self._device))
        return greedy.index_copy(0, index, drawn)


class PendingSample:
    """Sampled tokens on the device, and their copy on its way to the host."""

    def __init__(
        self,
        token_ids: torch.Tensor,
        columns: list[torch.Tensor],
        params: list[SamplingParams],
        failures: dict[int, str],
    ) -> None:
        """`columns` int32 `[R, *]`: ids, finiteness, and log-probabilities if any row wants them; copied as one."""
        self.token_ids = token_ids
        """int64 [R]"""
        self._packed = Download(columns[0] if len(columns) == 1 else torch.cat(columns, dim=1))
        self._params = params
        self._failures = failures

    def result(self) -> Sampled:
        """Wait for the copy and read it."""
        packed = self._packed.result()
        logprobs: list[TokenLogprobs | None] = [None] * len(self._params)
        for row, p in enumerate(self._params):
            if p.logprobs is not None:
                logprobs[row] = read_logprobs(packed[row, 2:], p.logprobs)
        finite = [bool(flag) for flag in packed[:, 1].tolist()]
        return Sampled(packed[:, 0].tolist(), logprobs, finite, failures=self._failures)


def draw(weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The first token at which the running sum of `weights` fp32 `[r, V]` exceeds `u` float64 `[r]` times their total.

    Sums tiles first, then runs through one tile: a running sum over the whole vocabulary would lose its tail to
    rounding, and cost more. A token of weight 0 is never drawn.
    """
    rows, vocab = weights.shape
    tiles = torch.nn.functional.pad(weights, (0, -vocab % TILE)).view(rows, -1, TILE)
    sums = tiles.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target = (u * sums[:, -1]).unsqueeze(1)
    tile = torch.searchsorted(sums, target, right=True).clamp_(max=sums.shape[1] - 1)
    before = torch.where(tile > 0, sums.gather(1, (tile - 1).clamp(min=0)), 0.0)
    inner = tiles.gather(1, tile.unsqueeze(2).expand(-1, -1, TILE)).squeeze(1).double().cumsum(dim=-1)
    # Rounding may leave the rest above the tile's own sum; then the tile's last token of any weight is meant.
    rest = torch.minimum(target - before, inner[:, -1:] * (1 - 2.0**-50))
    return (tile * TILE + torch.searchsorted(inner, rest, right=True)).squeeze(1).clamp_(max=vocab - 1)


def _filter(probabilities: torch.Tensor, params: list[SamplingParams]) -> torch.Tensor:
    """Zero what top_k, top_p and min_p drop, each judged on what the one before has kept."""
    if not any(p.top_k or p.top_p < 1 or p.min_p for p in params):
        return probabilities
    vocab = probabilities.shape[1]
    device = probabilities.device
    limits = np.array([p.top_k if p.top_k < vocab else 0 for p in params], dtype=np.int64)
    top_k = to_device(limits, device)
    top_p = to_device(np.array([p.top_p for p in params], dtype=np.float64), device)
    min_p = to_device(np.array([p.min_p for p in params], dtype=np.float32), device)
    largest = probabilities.topk(min(PREFIX, vocab), dim=-1).values
    thresholds, complete = _thresholds(largest, top_k, top_p)
    if vocab > PREFIX and any(p.top_p < 1 or limit > PREFIX for p, limit in zip(params, limits, strict=True)):
        rows = (~complete | (top_k > PREFIX)).nonzero().squeeze(1)
        if len(rows):
            ordered = probabilities[rows].sort(dim=-1, descending=True).values
            thresholds[rows] = _thresholds(ordered, top_k[rows], top_p[rows])[0]
    thresholds = torch.maximum(thresholds, min_p * largest[:, 0])
    return torch.where(probabilities >= thresholds.unsqueeze(1), probabilities, 0.0)


def _thresholds(largest: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The least probability that top_k (0: off) and top_p keep, fp32 `[r]`, and whether `largest` told it, bool `[r]`.

    `largest` fp32 `[r, width]` are the largest probabilities in falling order; they tell it if the nucleus ends
    within them.
    """
    width = largest.shape[1]
    sums = largest.double().cumsum(dim=-1)
    has_k, has_p = top_k > 0, top_p < 1
    k_value = largest.gather(1, (top_k - 1).clamp(min=0, max=width - 1).unsqueeze(1))
    # Ties with the k-th are kept, so the mass that top_k keeps runs to the last of them.
    last_tie = (largest >= k_value).sum(dim=-1) - 1
    mass = torch.where(has_k, sums.gather(1, last_tie.unsqueeze(1)).squeeze(1), 1.0)
    p_index = (sums < (top_p * mass).unsqueeze(1)).sum(dim=-1)
    p_value = largest.gather(1, p_index.clamp(max=width - 1).unsqueeze(1)).squeeze(1)
    threshold = torch.maximum(
        torch.where(has_k, k_value.squeeze(1), 0.0), torch.where(has_p & (p_index < width), p_value, 0.0)
    )
    complete = ~has_p | ((p_index < width) & ~(has_k & (last_tie == width - 1)))
    return threshold, complete


def sparse_changes(sequences: list[Sequence]) -> tuple[list[int], list[int], list[float]]:
    """What logit_bias and `min_tokens` add to single logits: rows, tokens, values."""
    rows: list[int] = []
    tokens: list[int] = []
    values: list[float] = []
    for row, sequence in enumerate(sequences):
        suppressed = suppressed_token_ids(sequence)
        bias = sequence.params.logit_bias
        rows += [row] * (len(bias) + len(suppressed))
        tokens += [*bias, *suppressed]
        values += [*bias.values(), *[float("-inf")] * len(suppressed)]
    return rows, tokens, values


def is_plain_greedy(sequence: Sequence) -> bool:
    """Whether argmax of the logits, a bitmask aside, is all there is to do."""
    params = sequence.params
    return (
        params.temperature == 0
        and params.logprobs is None
        and not params.logit_bias
        and not has_penalty(params)
        and sequence.num_generated >= params.min_tokens
    )


def has_penalty(params: SamplingParams) -> bool:
    """Whether logits depend on the tokens so far."""
    return params.frequency_penalty != 0 or params.presence_penalty != 0 or params.repetition_penalty != 1
