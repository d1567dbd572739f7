"""The sampler of CUDA devices: the order of `engine.sampling.sampler`, in kernels that never wait for the host.

The draw is another one than there, of the same distribution: see `engine.kernels.triton_sampler`. Its noise too is a
function of seed and position.
"""

import itertools

import numpy as np
import torch

from engine.device.device import to_device, upload
from engine.kernels.triton_filter import thresholds
from engine.kernels.triton_sampler import adjust, race
from engine.noise import keys
from engine.sampling.bitmask import BitmaskBuilder, Filled
from engine.sampling.logprobs import logprob_columns
from engine.sampling.sampler import LEAST_DIVISOR, PendingSample, has_penalty, is_plain_greedy, sparse_changes
from engine.sampling.token_counts import TokenCounts
from engine.scheduling.sequence import Sequence

_FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")


class DeviceSampler:
    """See `engine.sampling.sampler.Sampler`."""

    def __init__(self, *, max_num_seqs: int, vocab_size: int, device: torch.device) -> None:
        self._device = device
        self._counts = TokenCounts(max_num_seqs=max_num_seqs, vocab_size=vocab_size, device=device)
        self._bitmask = BitmaskBuilder(max_num_seqs=max_num_seqs, vocab_size=vocab_size)

    def sample(self, logits: torch.Tensor, sequences: list[Sequence], last_tokens: torch.Tensor) -> PendingSample:
        """See `engine.sampling.sampler.Sampler.sample`."""
        filled = self._bitmask.fill(sequences)
        params = [sequence.params for sequence in sequences]
        is_plain = all(is_plain_greedy(sequence) for sequence in sequences)
        if is_plain and not filled.rows:
            (slots,) = upload([np.array([sequence.slot for sequence in sequences])], self._device)
            token_ids, packed = race(logits, slots, last_tokens)
            return PendingSample(token_ids, [packed], params, filled.failures)
        slots, row_keys, top_ks, mask_rows = self._integers(sequences, filled)
        temperatures, top_ps, min_ps, *penalties = self._floats(sequences)
        x = self._adjusted(logits, sequences, slots, (penalties[0], penalties[1], penalties[2]), mask_rows, filled)
        hot = None
        if any(p.temperature > 0 for p in params):
            hot = (temperatures, row_keys, *thresholds(x, temperatures, top_ks, top_ps, min_ps))
        token_ids, packed = race(x, slots, last_tokens, hot=hot)
        columns = [packed]
        most = max((p.logprobs for p in params if p.logprobs is not None), default=None)
        if most is not None:
            columns.append(self._logprobs(logits, token_ids, sequences, most))
        return PendingSample(token_ids, columns, params, filled.failures)

    def warm_up(self, dtype: torch.dtype) -> None:
        """Launch every kernel in every form, for logits of this dtype, so that none is built while a request waits."""
        counts, in_prompt = self._counts.counts, self._counts.in_prompt
        logits = torch.zeros(1, counts.shape[1], dtype=dtype, device=self._device)
        integers = torch.zeros(1, dtype=torch.int64, device=self._device)
        floats = torch.ones(1, dtype=torch.float32, device=self._device)
        words = torch.full((1, -(-counts.shape[1] // 32)), -1, dtype=torch.int32, device=self._device)
        race(logits, integers, integers.clone())
        for penalties, mask in itertools.product((None, (floats, floats, floats)), (None, words)):
            x = adjust(
                logits, integers, penalties=penalties, counts=counts, in_prompt=in_prompt, mask_rows=integers,
                words=mask,
            )  # fmt: skip
        race(x, integers, integers.clone())
        bests, bounds = thresholds(x, floats, integers + 1, floats / 2, floats / 2)
        race(x, integers, integers.clone(), hot=(floats, integers, bests, bounds))

    def _integers(self, sequences: list[Sequence], filled: Filled) -> list[torch.Tensor]:
        """int64 `[R]` each: slots, keys of the noise, top_k, rows of the bitmask."""
        seeds = np.array([sequence.seed for sequence in sequences], dtype=np.int64)
        positions = np.array([sequence.num_tokens for sequence in sequences], dtype=np.int64)
        mask_rows = np.full(len(sequences), -1, dtype=np.int64)
        mask_rows[filled.rows] = np.arange(len(filled.rows))
        slots = np.array([sequence.slot for sequence in sequences], dtype=np.int64)
        top_ks = np.array([sequence.params.top_k for sequence in sequences], dtype=np.int64)
        return upload([slots, keys(seeds, positions).view(np.int64), top_ks, mask_rows], self._device)

    def _floats(self, sequences: list[Sequence]) -> list[torch.Tensor]:
        """fp32 `[R]` each, in the order of `_FLOATS`."""
        values = np.array(
            [[getattr(sequence.params, name) for sequence in sequences] for name in _FLOATS], dtype=np.float64
        )
        # What is too small for fp32 is the limit it stands for.
        values[0] = np.where(values[0] > 0, np.maximum(values[0], LEAST_DIVISOR), 0.0)
        values[3] = np.maximum(values[3], LEAST_DIVISOR)
        return list(to_device(values.astype(np.float32), self._device))

    def _adjusted(
        self,
        logits: torch.Tensor,
        sequences: list[Sequence],
        slots: torch.Tensor,
        penalties: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        mask_rows: torch.Tensor,
        filled: Filled,
    ) -> torch.Tensor:
        """fp32 `[R, V]`: penalties, bitmask, bias and suppressed tokens."""
        penalised = [sequence for sequence in sequences if has_penalty(sequence.params)]
        self._counts.update(penalised)
        x = adjust(
            logits,
            slots,
            penalties=penalties if penalised else None,
            counts=self._counts.counts,
            in_prompt=self._counts.in_prompt,
            mask_rows=mask_rows,
            words=to_device(filled.words.copy(), self._device) if filled.rows else None,
        )
        rows, tokens, values = sparse_changes(sequences)
        if rows:
            places = np.array(rows, dtype=np.int64) * logits.shape[1] + np.array(tokens, dtype=np.int64)
            index = to_device(places, self._device)
            x.view(-1).index_add_(0, index, to_device(np.array(values, dtype=np.float32), self._device))
        return x

    def _logprobs(
        self, logits: torch.Tensor, token_ids: torch.Tensor, sequences: list[Sequence], most: int
    ) -> torch.Tensor:
        """The columns of the rows that want any; zeros in the others."""
        wanted = [row for row, sequence in enumerate(sequences) if sequence.params.logprobs is not None]
        if len(wanted) == len(sequences):
            return logprob_columns(logits.float(), token_ids, most)
        index = to_device(np.array(wanted, dtype=np.int64), self._device)
        columns = logprob_columns(logits[index].float(), token_ids[index], most)
        whole = torch.zeros(len(sequences), columns.shape[1], dtype=torch.int32, device=self._device)
        return whole.index_copy_(0, index, columns)
