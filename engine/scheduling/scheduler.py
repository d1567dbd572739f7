"""Which sequences compute how many tokens in the next step.

There is no prefill phase and no decode phase: each step lets `num_computed_tokens` of the running sequences catch up
with `num_tokens` under a token budget, one-token rows first, so a long prompt never starves a decoding sequence. Then
waiting sequences join while slots, budget and blocks last, strictly in order: the smallest `priority` first, then those
that were preempted, then in turn between tenants (`Shares`), and those of one tenant by arrival. Nothing keeps those of
greater priorities from waiting for ever, if those before them never cease to come.

When blocks run out the last in that order gives its own back and waits again, at the head of the queue among its
equals, to be recomputed (Kwon et al., arXiv 2309.06180, section 4.5). A sequence preempted `MAX_PREEMPTIONS` times
comes back only with all the blocks it can ever need, and is never preempted again.
"""

import bisect
import itertools
import time
from collections import deque
from operator import attrgetter

from engine.scheduling.block_manager import BlockManager
from engine.scheduling.image_shelf import ImageShelf
from engine.scheduling.scheduled import MAX_SCORED_TOKENS, Budget, Scheduled
from engine.scheduling.sequence import NOT_STARTED, Sequence, Status
from engine.scheduling.shares import Shares

MAX_PREEMPTIONS = 3

_order = attrgetter("order")


class Scheduler:
    """Waiting and running sequences, their slots, and the order in which they compute."""

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_num_seqs: int,
        max_batched_tokens: int,
        max_prefill_tokens: int = 0,
        step_sizes: tuple[int, ...] = (),
        shelf: ImageShelf | None = None,
    ) -> None:
        """`max_batched_tokens` bounds the tokens of a step, `max_prefill_tokens` those of the rows that catch up by
        more than one token while others decode (0: no bound of its own), which bounds what a long prompt can add to
        their inter-token latency. A step with prompts that has no more than the largest of `step_sizes` tokens costs as
        much as one of the next of them, so that bound is lowered to meet one that is near. With a `shelf` a sequence
        runs only while its images have a place on it."""
        assert max_batched_tokens >= max_num_seqs > 0
        self.blocks = blocks
        self.shelf = shelf
        self.max_batched_tokens = max_batched_tokens
        self.max_prefill_tokens = max_prefill_tokens or max_batched_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        """Both in `Sequence.order`; the last of the running is the first to give way."""
        self.num_preemptions = 0
        self.max_scored_tokens = MAX_SCORED_TOKENS
        self._step_sizes = step_sizes
        self._arrivals = itertools.count()
        self._starts = itertools.count()
        self._shares = Shares()
        self._free_slots = list(range(max_num_seqs - 1, -1, -1))
        self._num_slots = max_num_seqs

    @property
    def has_work(self) -> bool:
        """Whether any sequence is waiting or running."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. It must fit the pool when alone (the engine refuses what does not)."""
        assert self.blocks.blocks_for(sequence.max_computed_tokens) <= self.blocks.num_blocks
        sequence.arrival = next(self._arrivals)
        self._shares.enter(sequence.tenant)
        self._wait(sequence)

    def _wait(self, sequence: Sequence) -> None:
        self._shares.wait(sequence.tenant)
        bisect.insort(self.waiting, sequence, key=_order)

    def _stop_waiting(self, sequence: Sequence) -> None:
        self._shares.proceed(sequence.tenant)
        self.waiting.remove(sequence)

    def schedule(self) -> list[Scheduled]:
        """Choose the rows of the next step: one-token rows first, each sequence at most once."""
        rows: list[Scheduled] = []
        catching_up: list[Sequence] = []
        for sequence in list(self.running):
            if sequence.status is not Status.RUNNING:  # preempted for an earlier one in this very loop
                continue
            if not sequence.needs_compute:
                continue
            if sequence.num_tokens - sequence.num_computed_tokens > 1:
                catching_up.append(sequence)
            elif self._make_room(sequence):
                rows.append(Scheduled(sequence, 1))
        tokens = self.max_batched_tokens - len(rows)
        budget = Budget(min(tokens, self._chunk(len(rows))) if rows else tokens, self.max_scored_tokens)
        for sequence in catching_up:
            if sequence.status is Status.RUNNING and (num_tokens := budget.take(sequence)):
                rows.append(Scheduled(sequence, num_tokens))
        self._admit(rows, budget)
        return rows

    def _chunk(self, rows: int) -> int:
        """Tokens of prompts beside so many decoding rows: what fills a step's size, if that is not far less."""
        chunk = self.max_prefill_tokens
        filling = max((size - rows for size in self._step_sizes if size - rows <= chunk), default=0)
        return filling if 2 * filling >= chunk and chunk + rows <= self._step_sizes[-1] else chunk

    def _admit(self, rows: list[Scheduled], budget: Budget) -> None:
        while self.waiting and self._free_slots and budget.tokens > 0:
            sequence = self._next()
            leader = sequence.leader
            if leader is not None and not leader.is_finished and leader.num_prefilled_tokens < leader.num_prompt_tokens:
                break
            num_computed = self.blocks.match_prefix(sequence)
            if not self._reserve(sequence):
                self.blocks.release(sequence)
                break
            self._stop_waiting(sequence)
            if sequence.start == NOT_STARTED:
                sequence.start = next(self._starts)
                # The whole prompt at once, so that the next in turn is another's.
                self._charge(sequence, sequence.num_prompt_tokens, of=sequence.num_prompt_tokens - num_computed)
            if sequence.queue_seconds is None:
                sequence.queue_seconds = time.perf_counter() - sequence.arrived_at
            sequence.leader = None
            sequence.num_computed_tokens = num_computed
            found = min(num_computed, sequence.num_prompt_tokens) - sequence.num_prefilled_tokens
            if found > 0:
                sequence.num_cached_tokens += found
                sequence.num_prefilled_tokens += found
            sequence.slot = self._free_slots.pop()
            sequence.status = Status.RUNNING
            bisect.insort(self.running, sequence, key=_order)
            if num_tokens := budget.take(sequence):
                rows.append(Scheduled(sequence, num_tokens))

    def _next(self) -> Sequence:
        """The waiting sequence whose turn it is."""
        first = self.waiting[0]
        if first.start != NOT_STARTED or self._shares.num_tenants == 1:
            return first
        return self._shares.first(itertools.takewhile(lambda one: one.priority == first.priority, self.waiting))

    def _charge(self, sequence: Sequence, num_tokens: int, *, of: int) -> None:
        """Count the leading `num_tokens` as its tenant's; `of` them are computed for it."""
        sequence.num_charged_tokens = num_tokens
        self._shares.charge(sequence.tenant, of, sequence.weight)

    def _reserve(self, sequence: Sequence) -> bool:
        """Room for its images, and blocks for all its tokens, leaving one for each running sequence's next token.

        A prompt admitted by its first chunk alone would only be preempted half-way; so a sequence that is catching up
        never asks for blocks.
        """
        if self.shelf is not None and not self.shelf.take(sequence):
            return False
        if self._reserve_blocks(sequence):
            return True
        if self.shelf is not None:
            self.shelf.give_back(sequence)
        return False

    def _reserve_blocks(self, sequence: Sequence) -> bool:
        if sequence.num_preemptions >= MAX_PREEMPTIONS:
            return self.blocks.grow(sequence, sequence.max_computed_tokens)
        missing = self.blocks.blocks_for(sequence.num_tokens) - len(sequence.block_table)
        if self.running and missing + len(self.running) > self.blocks.num_available:
            return False
        return self.blocks.grow(sequence, sequence.num_tokens)

    def _make_room(self, sequence: Sequence) -> bool:
        """A block for the next token of a decoding sequence, taken from one behind it if need be.

        False if the sequence itself was the last and had to give way. One that is past `MAX_PREEMPTIONS` holds all
        its blocks already, so it never comes to a choice here, neither as asker nor as victim.
        """
        while not self.blocks.grow(sequence, sequence.num_tokens):
            victim = next(s for s in reversed(self.running) if s.num_preemptions < MAX_PREEMPTIONS)
            self.preempt(victim)
            if victim is sequence:
                return False
        return True

    def preempt(self, sequence: Sequence) -> None:
        """Take blocks and slot from a running sequence; it waits where it stood, before all that have not run yet."""
        self._leave(sequence)
        sequence.status = Status.WAITING
        sequence.num_computed_tokens = sequence.num_unread_tokens = 0
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self._wait(sequence)

    def finish(self, sequence: Sequence, reason: str) -> None:
        """End a sequence wherever it is, giving back what it holds. Idempotent."""
        if sequence.status is Status.WAITING:
            self._stop_waiting(sequence)
        elif sequence.status is Status.RUNNING:
            self._leave(sequence)
        else:
            return
        sequence.status = Status.FINISHED
        sequence.finish_reason = reason
        self._shares.leave(sequence.tenant)

    def advance(self, row: Scheduled) -> None:
        """Note that a row's tokens are being computed: what comes after it on the device finds them."""
        row.sequence.num_computed_tokens = row.end

    def commit(self, row: Scheduled) -> None:
        """Note that a row's tokens are computed. Its full blocks can be hit from now on."""
        sequence = row.sequence
        prefilled = min(row.end, sequence.num_prompt_tokens)
        sequence.num_prefilled_tokens = max(sequence.num_prefilled_tokens, prefilled)
        if row.end > sequence.num_charged_tokens:
            self._charge(sequence, row.end, of=row.end - sequence.num_charged_tokens)
        if row.end // self.blocks.block_size > row.first // self.blocks.block_size:
            self.blocks.publish(sequence, row.first, row.end)

    def shrink(self, num_blocks: int) -> list[Sequence]:
        """Withdraw up to `num_blocks` blocks for good, always leaving one; the sequences that this has ended.

        No sequence can hold more than what the rest computes, and one token more. One that already does is ended:
        with `length` if it has generated something, else with `error`. Where owned blocks must go, the last
        sequences are preempted, also those past `MAX_PREEMPTIONS`.
        """
        rest = max(1, self.blocks.num_blocks - num_blocks)
        capacity = rest * self.blocks.block_size
        ended = []
        for sequence in [*self.running, *self.waiting]:
            sequence.max_len = min(sequence.max_len, capacity + 1)
            if sequence.num_tokens > capacity:
                self.finish(sequence, "length" if sequence.num_generated else "error")
                ended.append(sequence)
        surplus = self.blocks.num_blocks - rest
        while self.blocks.num_available < surplus:
            self.preempt(self.running[-1])
        self.blocks.shrink(surplus)
        return ended

    def lower_budget(self) -> bool:
        """Halve the tokens of a step, because they took more memory than there was; False if they cannot be fewer."""
        lowered = max(self.max_batched_tokens // 2, self._num_slots)
        if lowered == self.max_batched_tokens:
            return False
        self.max_batched_tokens = lowered
        return True

    def check(self) -> None:
        """Raise AssertionError if the books disagree anywhere."""
        self.blocks.check(self.running)
        if self.shelf is not None:
            self.shelf.check(self.running)
        queued = [id(s) for s in (*self.waiting, *self.running)]
        assert len(set(queued)) == len(queued), "a sequence is queued twice"
        assert not any(s.block_table or s.slot >= 0 for s in self.waiting), "a waiting sequence holds memory"
        assert all(s.status is Status.WAITING and s.num_computed_tokens == 0 for s in self.waiting)
        assert all(s.status is Status.RUNNING for s in self.running)
        for queue in (self.waiting, self.running):
            assert all(a.order < b.order for a, b in itertools.pairwise(queue)), "a queue is out of order"
        self._shares.check(self.waiting, (*self.waiting, *self.running))
        slots = [s.slot for s in self.running] + self._free_slots
        assert sorted(slots) == list(range(self._num_slots)), "slots are lost or shared"
        for sequence in self.running:
            assert self.blocks.blocks_for(sequence.num_computed_tokens) <= len(sequence.block_table)

    def _leave(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.blocks.release(sequence)
        if self.shelf is not None:
            self.shelf.give_back(sequence)
        self._free_slots.append(sequence.slot)
        sequence.slot = -1
