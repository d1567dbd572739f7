"""A model made of hashes over paged memory: any wrong block, slot or position changes what it says next.

`Memory` cells hold token ids where a real model holds keys and values. The next token is a hash of what the cells of a
sequence really hold, found through the real `BatchBuilder`. What can only be a mistake of the engine is noted in
`violations` rather than raised, since the engine survives whatever a runner raises.
"""

import hashlib
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch

from engine.device.forward_batch import BatchBuilder, ForwardBatch
from engine.engine import Engine
from engine.grammar.compiler import GrammarCompiler
from engine.messages import TokenLogprobs
from engine.sampling.sampler import Sampled
from engine.sampling_params import SamplingParams
from engine.scheduling.block_manager import BlockManager
from engine.scheduling.pacing import PrefillPacer
from engine.scheduling.scheduled import Scheduled
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.sequence import Sequence
from engine.scheduling.stop import suppressed_token_ids
from tests.engine.fake_grammar import FakeCompiler, allowed_tokens, text_length

EMPTY, BROKEN = -1, -2
STOP, EOS = 3, 4
VOCAB = 5
"""Prompts are of tokens 0 to 2, so that their prefixes collide."""


def next_token(token_ids: list[int], banned: list[int]) -> int:
    """What follows `token_ids`: usually 0 to 2, sometimes EOS or STOP unless `banned`."""
    digest = hashlib.blake2b(bytes(token_ids), digest_size=8).digest()
    for byte in digest:
        token = {0: EOS, 1: STOP}.get(byte % 16, byte % 3)
        if token not in banned:
            return token
    return min({0, 1, 2} - set(banned))


def score(token_ids: list[int]) -> float:
    """The log-probability of the last of `token_ids` after the others."""
    return -hashlib.blake2b(bytes(token_ids), digest_size=8).digest()[1] / 16


def scores_alone(prompt: list[int]) -> list[float]:
    """The log-probabilities of a prompt's tokens, from its second on."""
    return [score(prompt[: end + 1]) for end in range(1, len(prompt))]


def continue_alone(prompt: list[int], params: SamplingParams, max_len: int) -> tuple[list[int], str]:
    """What a request gets when nobody else is there: its tokens and why it ends, with stop rules of its own."""
    ids: list[int] = []
    if params.max_tokens == 0:
        return ids, "length"
    source = params.constraint.source if params.constraint is not None else None
    while True:
        may_end = len(ids) >= params.min_tokens
        ending = {*params.stop_token_ids} | (set() if params.ignore_eos else {EOS})
        banned = set() if may_end else ending
        if source is not None:
            banned = set(range(VOCAB)) - set(allowed_tokens(source, len(ids)))
        ids.append(next_token(prompt + ids, sorted(banned)))
        if ids[-1] in ending and len(ids) >= params.min_tokens:
            return ids, "stop"
        if source is not None and len(ids) == text_length(source):
            return ids, "stop"
        if len(ids) >= params.max_tokens or len(prompt) + len(ids) >= max_len:
            return ids, "length"


class FakeRunner:
    """See the module's docstring. Serves as `engine.engine.Runner`."""

    def __init__(self, *, num_blocks: int, block_size: int, max_num_seqs: int, context: int) -> None:
        self._block_size = block_size
        self._tokens = np.full((num_blocks + 1) * block_size, EMPTY)
        self._tenants: list[bytes | None] = [None] * len(self._tokens)
        self.salts: dict[int, bytes] = {}
        """By request, for tests that have several tenants."""
        self._builder = BatchBuilder(
            max_num_seqs=max_num_seqs,
            max_blocks=-(-context // block_size) + 1,
            block_size=block_size,
            device=torch.device("cpu"),
        )
        self.violations: list[str] = []
        self.num_steps = self.num_tokens = 0
        """Steps so far, and the tokens of the last one."""
        self.broken: set[Sequence] = set()
        """Sequences whose next sampled row is not finite."""
        self.errors: list[Exception] = []
        """Raised by the next steps, one by one, after the memory was written."""
        self.failed_rows: list[Sequence] = []
        """Sequences of the step that raised last."""

    def forward(self, rows: list[Scheduled]) -> "FakeFlight":
        """See `Runner.forward`."""
        self.num_steps += 1
        self.num_tokens = sum(row.num_tokens for row in rows)
        batch = self._builder.build(rows)
        self._check_rows(rows, batch)
        written = batch.slot_mapping.numpy()
        self._tokens[written] = batch.input_ids.numpy()
        for row, ends in zip(rows, np.cumsum(batch.query_lens), strict=True):
            for slot in written[ends - row.num_tokens : ends]:
                self._tenants[slot] = self.salts.get(row.sequence.request_id)
        if self.errors:
            self.failed_rows = [row.sequence for row in rows]
            self._tokens[written] = BROKEN
            raise self.errors.pop()
        positions = [batch.context_lens[i] - 1 for i, row in enumerate(rows) if row.samples]
        positions += [position for row in rows for position in row.scored]
        found = np.repeat(batch.context_lens, batch.query_lens) - np.repeat(
            np.cumsum(batch.query_lens), batch.query_lens
        )
        if (np.arange(self.num_tokens) + found)[batch.logits_index.numpy()].tolist() != positions:
            self.violations.append("the batch has the logits of other rows than the scheduler meant")
        return FakeFlight(self, rows, batch)

    def sample(self, row: Scheduled, batch: ForwardBatch, index: int) -> tuple[int, bool]:
        """A token and whether it was finite; the next step can read the token."""
        token, finite = self._sample(row.sequence, batch, index)
        self._builder.last_tokens[row.sequence.slot] = token
        return token, finite

    def sleep(self) -> tuple[int, int]:
        """See `Runner.sleep`."""
        self._tokens[:] = EMPTY
        self._tenants = [None] * len(self._tokens)
        return len(self._tokens), 0

    def wake(self) -> None:
        """See `Runner.wake`."""

    def rest(self) -> None:
        """See `Runner.rest`."""

    def close(self) -> None:
        """See `Runner.close`."""

    def wipe_blocks(self, blocks: list[int], block_size: int) -> None:
        """See `Runner.wipe_blocks`."""
        for block in blocks:
            self._tokens[block * block_size : (block + 1) * block_size] = EMPTY

    def _check_rows(self, rows: list[Scheduled], batch: ForwardBatch) -> None:
        slots = [row.sequence.slot for row in rows]
        if len(set(slots)) != len(slots):
            self.violations.append(f"a slot serves two sequences of one step: {rows}")
        if (batch.slot_mapping < self._block_size).any():
            self.violations.append(f"the null block is written: {rows}")
        if len(set(batch.slot_mapping.tolist())) != len(batch.slot_mapping):
            self.violations.append(f"a cell is written twice in a step: {rows}")
        if any(n > 1 for n in batch.query_lens[: batch.num_decodes]):
            self.violations.append("a prompt is taken for a decoding row")

    def score(self, row: Scheduled, batch: ForwardBatch, index: int) -> list[TokenLogprobs] | None:
        """From what the cells hold up to each scored position, and the token that follows."""
        if row.sequence in self.broken:
            return None
        seen = self._tokens[self._cells(batch, index)].tolist()
        return [
            TokenLogprobs(score([*seen[: position + 1], row.sequence.token_ids[position + 1]]), [], [])
            for position in row.scored
        ]

    def _cells(self, batch: ForwardBatch, row: int) -> np.ndarray:
        positions = np.arange(batch.context_lens[row])
        blocks = batch.block_tables[row].numpy()[positions // self._block_size].astype(np.int64)
        return np.asarray(blocks * self._block_size + positions % self._block_size)

    def _sample(self, sequence: Sequence, batch: ForwardBatch, row: int) -> tuple[int, bool]:
        cells = self._cells(batch, row)
        seen = self._tokens[cells].tolist()
        if seen != sequence.token_ids:
            self.violations.append(f"{sequence} sees {seen} in place of {sequence.token_ids}")
            return 0, True
        tenant = self.salts.get(sequence.request_id)
        if any(self._tenants[cell] != tenant for cell in cells):
            self.violations.append(f"{sequence} sees what another tenant wrote")
        if sequence in self.broken:
            self.broken.discard(sequence)
            self._tokens[cells[-1]] = BROKEN
            return 0, False
        banned = set(suppressed_token_ids(sequence))
        if sequence.grammar is not None:
            words = np.zeros(1, dtype=np.int32)
            sequence.grammar.fill_bitmask(words)
            banned |= {token for token in range(VOCAB) if not words[0] >> token & 1}
        return next_token(seen, sorted(banned)), True


class FakeFlight:
    """See `Flight`."""

    def __init__(self, runner: FakeRunner, rows: list[Scheduled], batch: ForwardBatch) -> None:
        self._runner = runner
        self._rows = rows
        self._batch = batch
        self._sampled: list[tuple[int, bool]] = []
        self._scores: list[list[TokenLogprobs] | None] = []

    def sample(self, sampling: list[Scheduled], scoring: list[Scheduled]) -> None:
        """See `Flight.sample`."""
        for index, row in enumerate(self._rows):
            if row in sampling:
                self._sampled.append(self._runner.sample(row, self._batch, index))
            if row in scoring:
                self._scores.append(self._runner.score(row, self._batch, index))

    def result(self) -> Sampled:
        """See `Flight.result`."""
        tokens = [token for token, _ in self._sampled]
        return Sampled(tokens, [None] * len(tokens), [finite for _, finite in self._sampled], self._scores)


def make_engine(
    *,
    num_blocks: int = 20,
    block_size: int = 4,
    max_num_seqs: int = 4,
    max_batched_tokens: int = 64,
    max_prefill_tokens: int = 0,
    context: int = 40,
    max_queued: int = 100,
    prefix_cache: bool = True,
    overlap: bool = False,
) -> tuple[Engine, Scheduler, FakeRunner]:
    """An engine over a fake model, and the parts of it that tests look into."""
    scheduler = Scheduler(
        BlockManager(num_blocks, block_size, prefix_cache=prefix_cache),
        max_num_seqs=max_num_seqs,
        max_batched_tokens=max_batched_tokens,
        max_prefill_tokens=max_prefill_tokens,
    )
    runner = FakeRunner(num_blocks=num_blocks, block_size=block_size, max_num_seqs=max_num_seqs, context=context)
    engine = Engine(
        runner,
        scheduler,
        context=context,
        vocab_size=VOCAB,
        eos_token_ids=frozenset({EOS}),
        max_queued=max_queued,
        compiler=cast(GrammarCompiler, FakeCompiler()),
        overlap=overlap,
    )
    # Chunks that follow the clock would make no two runs alike.
    engine._pacer = cast(PrefillPacer, SimpleNamespace(budget=scheduler.max_prefill_tokens, observe=lambda *_, **__: 0))
    return engine, scheduler, runner
