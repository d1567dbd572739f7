"""Engine, scheduler and block manager under random histories, held against each request run alone.

`make test` plays some thousands of operations, the same each time; `make soak` a hundred thousand and more, new ones.
"""

import logging
from collections.abc import Iterator
from typing import ClassVar

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine.messages import AddRequest, SequenceOutput
from engine.sampling_params import SamplingParams
from engine.scheduling.scheduler import MAX_PREEMPTIONS
from engine.scheduling.sequence import Sequence
from tests.engine.fake_runner import VOCAB, continue_alone, make_engine, scores_alone
from tests.engine.histories import BASES, REQUESTS, Expected, check_contents
from tests.soaking import SOAK

RULES = 60
"""Of one history."""
HISTORIES = 2000 if SOAK else 120


class EngineMachine(RuleBasedStateMachine):
    """The rules are everything that can happen to an engine."""

    num_operations: ClassVar[int] = 0
    """Requests, steps and events, over all histories."""

    @initialize(
        block_size=st.sampled_from([1, 2, 3, 4, 8]),
        capacity=st.sampled_from([24, 24, 28, 32, 40, 100]),
        max_num_seqs=st.sampled_from([4, 5, 3, 2, 1]),
        spare_budget=st.sampled_from([0, 1, 3, 60]),
        max_prefill_tokens=st.sampled_from([0, 1, 5]),
        context=st.sampled_from([24, 32, 60, 18]),
        max_queued=st.sampled_from([12, 30, 3]),
        prefix_cache=st.sampled_from([True, True, True, False]),
        max_scored_tokens=st.sampled_from([256, 1, 5]),
        overlap=st.booleans(),
    )
    def build(
        self,
        block_size: int,
        capacity: int,
        max_num_seqs: int,
        spare_budget: int,
        max_prefill_tokens: int,
        context: int,
        max_queued: int,
        prefix_cache: bool,
        max_scored_tokens: int,
        overlap: bool,
    ) -> None:
        self.num_blocks, self.block_size = -(-capacity // block_size), block_size
        self.context, self.max_queued = context, max_queued
        self.engine, self.scheduler, self.runner = make_engine(
            num_blocks=self.num_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_batched_tokens=max_num_seqs + spare_budget,
            max_prefill_tokens=max_prefill_tokens and min(max_prefill_tokens, max_num_seqs + spare_budget),
            context=context,
            max_queued=max_queued,
            prefix_cache=prefix_cache,
            overlap=overlap,
        )
        self.overlap = overlap
        self.scheduler.max_scored_tokens = max_scored_tokens
        self.live: dict[tuple[int, int], Expected] = {}
        self.refusals: dict[tuple[int, int], int] = {}
        """Errors that must come with the next step, for requests that were never admitted."""
        self.next_id = self.num_shrinks = 0
        self.num_generated = self.num_aborted = self.num_failed = 0
        self.sequences: list[Sequence] = []

    @property
    def limit(self) -> int:
        """The context that is left."""
        return min(self.context, self.num_blocks * self.block_size + 1)

    # Several rules, because each history leaves out some: one without traffic would prove nothing.
    @rule(requests=st.lists(REQUESTS, min_size=2, max_size=5), count=st.integers(0, 2))
    def burst(self, requests: list[AddRequest], count: int) -> None:
        self._play(requests, count)

    @rule(request=REQUESTS, count=st.integers(1, 4))
    def arrival(self, request: AddRequest, count: int) -> None:
        self._play([request], count)

    @rule(requests=st.lists(REQUESTS, min_size=3, max_size=3), count=st.integers(3, 8))
    def rush_hour(self, requests: list[AddRequest], count: int) -> None:
        self._play(requests, count)

    @precondition(lambda self: self.sequences)
    @rule(which=st.integers(0, 99), extra=st.integers(0, 9), max_tokens=st.integers(1, 9))
    def add_the_next_turn(self, which: int, extra: int, max_tokens: int) -> None:
        """A prompt that goes on from what an earlier request has said."""
        former = self.sequences[-1 - which % len(self.sequences)]
        prompt = [*former.token_ids, *BASES[0][:extra]]
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        self._submit(AddRequest(0, prompt, params, salt=self.runner.salts[former.request_id]))

    @rule(kind=st.sampled_from(["empty", "n", "token", "bias", "temperature", "priority"]))
    def add_what_is_refused(self, kind: str) -> None:
        params = SamplingParams(
            max_tokens=2,
            logit_bias={VOCAB: 1.0} if kind == "bias" else {},
            temperature=float("nan") if kind == "temperature" else 1.0,
        )
        prompt = {"empty": [], "token": [1, VOCAB]}.get(kind, [1])
        request = AddRequest(
            self.next_id, prompt, params, n=0 if kind == "n" else 2, priority=1001 * (kind == "priority")
        )
        self.next_id += 1
        self.engine.add(request)
        for index in range(max(request.n, 1)):
            self._expect_refusal((request.request_id, index))

    @precondition(lambda self: len(self.live) > 4)
    @rule(which=st.integers(0, 99))
    def add_an_id_in_use(self, which: int) -> None:
        request_id = self._pick(which)[0]
        if request_id in self.engine._sequences:
            self.engine.add(AddRequest(request_id, [1, 2], SamplingParams(max_tokens=3)))
            self._expect_refusal((request_id, 0))

    @rule(count=st.integers(1, 6))
    def steps(self, count: int) -> None:
        self._play([], count)

    @rule(which=st.integers(0, 99), index=st.sampled_from([None, None, 0, 1]), twice=st.booleans())
    def abort(self, which: int, index: int | None, twice: bool) -> None:
        """Of a request in any state, or one choice of it, or one that has ended or never was."""
        ids = sorted({request_id for request_id, _ in self.live})
        request_id = ids[which % len(ids)] if ids and which < 80 else which
        doomed = [key for key in self.live if key[0] == request_id and index in (None, key[1])]
        # Some may have ended in a shrinking pool without having been told; then they are not aborted.
        ended = [self.live[key].sequence.finish_reason for key in doomed]
        for _ in range(1 + twice):
            self.engine.abort([request_id], index)
            for key in doomed:
                sequence = self.live[key].sequence
                assert sequence.is_finished and not sequence.block_table and sequence.slot == -1
        self.num_aborted += ended.count(None)
        self.num_failed += ended.count("error")
        for key in doomed:
            del self.live[key]
        for key in list(self.refusals):
            if key[0] == request_id and index in (None, key[1]):
                del self.refusals[key]

    @precondition(lambda self: self.scheduler.running)
    @rule(which=st.integers(0, 3))
    def preempt(self, which: int) -> None:
        running = self.scheduler.running
        self.scheduler.preempt(running[which % len(running)])

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 99))
    def fail_a_request(self, which: int) -> None:
        found = self.live[self._pick(which)]
        found.may_fail = True
        self.runner.broken.add(found.sequence)

    @precondition(lambda self: not self.engine._sequences and not self.engine.has_work)
    @rule(wakes=st.booleans())
    def sleep(self, wakes: bool) -> None:
        """Where nobody is there; the next request wakes it, if nothing did before."""
        self.engine.sleep()
        assert self.engine.stats().blocks_cached == 0 and self.engine.step() == []
        if wakes:
            self.engine.wake()

    @rule(out_of_memory=st.booleans())
    def fail_a_step(self, out_of_memory: bool) -> None:
        budget, slots = self.scheduler.max_batched_tokens, self.scheduler._num_slots
        self.runner.errors.append(torch.OutOfMemoryError("no memory") if out_of_memory else RuntimeError("lost"))
        self.runner.failed_rows = []
        steps = self.runner.num_steps
        self._step(failing=True)
        lowered = self.scheduler.max_batched_tokens < budget
        assert lowered == (out_of_memory and self.runner.num_steps > steps and budget > slots)
        assert self.runner.violations == []

    @precondition(lambda self: self.num_blocks > 1 and self.num_shrinks < 3)
    @rule(count=st.integers(1, 8))
    def shrink(self, count: int) -> None:
        self.num_shrinks += 1
        self.engine.settle()
        for output in self.engine.take_outputs():
            self._take(output)
        self.num_blocks = max(1, self.num_blocks - count)
        assert self.engine.shrink(count) == self.num_blocks
        for key, found in list(self.live.items()):
            found.max_len = min(found.max_len, self.limit)
            if len(found.prompt) + len(found.tokens) > self.num_blocks * self.block_size:
                assert found.sequence.is_finished
                found.may_fail |= not found.tokens  # also where it was computed whole, and asked for none
            else:
                assert not found.sequence.is_finished, key

    @rule()
    def reset_cache(self) -> None:
        self.scheduler.blocks.reset_cache()
        assert self.engine.stats().blocks_cached == 0

    @precondition(lambda self: len(self.live) > 8)
    @rule()
    def drain(self) -> None:
        """Everything ends within a bound: each step computes a token that some sequence needs."""
        work = sum(min(e.max_len, len(e.prompt) + e.params.max_tokens) for e in self.live.values())
        for _ in range(10 + (1 + self.overlap) * work * (MAX_PREEMPTIONS + 2)):
            if not self.engine.has_work:
                break
            self._step()
        assert not self.engine.has_work and not self.live and not self.refusals
        self._step()
        stats = self.engine.stats()
        assert stats.blocks_owned == stats.num_running == stats.num_waiting == 0
        assert stats.blocks_free + stats.blocks_cached == stats.blocks_total == self.num_blocks
        assert not self.engine._sequences

    @invariant()
    def books_agree(self) -> None:
        """After each rule, request and step."""
        if not hasattr(self, "engine"):
            return
        EngineMachine.num_operations += 1
        self.scheduler.check()
        assert self.runner.violations == []
        check_contents(self.scheduler, self.runner)
        self._check_counters()

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.drain()
            self.books_agree()

    def _play(self, requests: list[AddRequest], num_steps: int) -> None:
        for request in requests:
            self.books_agree()
            self._submit(request)
        for _ in range(num_steps):
            self.books_agree()
            self._step()

    def _submit(self, request: AddRequest) -> None:
        """Add it under a new id, expecting what the limits say."""
        request = msgspec.structs.replace(request, request_id=self.next_id)
        self.next_id += 1
        prompt, params = request.prompt_token_ids, request.params
        full = len(self.scheduler.waiting) + request.n > self.max_queued
        self.runner.salts[request.request_id] = request.salt
        self.engine.add(request)
        if params.constraint is not None:
            assert request.request_id not in self.engine._sequences
            self.engine._reception.admit_compiled()
        sequences = self.engine._sequences.get(request.request_id, [])
        longest = self.limit - 1 if params.max_tokens else min(self.context, self.num_blocks * self.block_size)
        if full or len(prompt) > longest:
            assert not sequences
            for index in range(request.n):
                self._expect_refusal((request.request_id, index))
            return
        assert len(sequences) == request.n
        self.sequences += sequences
        for sequence in sequences:
            expected = Expected(sequence, prompt, params, self.limit, is_accepted=sequence.index > 0)
            self.live[request.request_id, sequence.index] = expected

    def _expect_refusal(self, key: tuple[int, int]) -> None:
        self.refusals[key] = self.refusals.get(key, 0) + 1
        self.num_failed += 1

    def _pick(self, which: int) -> tuple[int, int]:
        return list(self.live)[which % len(self.live)]

    def _of(self, sequence: Sequence) -> Expected:
        return self.live[sequence.request_id, sequence.index]

    def _step(self, *, failing: bool = False) -> None:
        steps, has_work = self.runner.num_steps, self.scheduler.has_work
        preemptions = [(e.sequence, e.sequence.num_preemptions) for e in self.live.values()]
        budget = self.scheduler.max_batched_tokens
        waiting, running = list(self.scheduler.waiting), list(self.scheduler.running)
        outputs = self.engine.step()
        self._check_order(waiting, running, dict(preemptions))
        assert self.runner.num_tokens <= budget or not has_work
        waits = self.overlap and self.runner.num_steps == steps  # for the results of the step before
        assert self.runner.num_steps == steps + has_work or waits, "a step computed nothing"
        for sequence, before in preemptions:
            assert before <= sequence.num_preemptions <= max(before, min(before + 1, MAX_PREEMPTIONS))
        if failing:
            self.runner.errors.clear()
            for sequence in self.runner.failed_rows:
                self._of(sequence).may_fail = True
        for output in outputs:
            self._take(output)
        assert not self.refusals, "a refusal was not told"
        if failing:
            for sequence in self.runner.failed_rows:
                if not sequence.is_finished:  # it is tried again
                    self._of(sequence).may_fail = sequence in self.runner.broken

    def _check_order(self, waiting: list[Sequence], running: list[Sequence], before: dict[Sequence, int]) -> None:
        """Nobody is admitted before one who stood in front, and only the last give way."""
        kept_waiting = [s.order for s in waiting if s in self.scheduler.waiting]
        admitted = [s.order for s in waiting if s not in self.scheduler.waiting]
        assert not kept_waiting or not admitted or max(admitted) < min(kept_waiting)
        victims = [s for s in running if s.num_preemptions > before.get(s, MAX_PREEMPTIONS)]
        others = [s for s in running if s not in victims and s.num_preemptions < MAX_PREEMPTIONS]
        assert not victims or not others or max(s.order for s in others) < min(s.order for s in victims)

    def _take(self, output: SequenceOutput) -> None:
        key = (output.request_id, output.index)
        if output.error is not None and self.refusals.get(key):
            self.refusals[key] -= 1
            self.refusals = {key: count for key, count in self.refusals.items() if count}
            return
        found = self.live[key]
        if not found.is_accepted:
            assert output.is_empty
            found.is_accepted = True
            return
        found.scores += [entry.logprob for entry in output.prompt_logprobs or ()]
        wants_scores = found.params.prompt_logprobs is not None and output.index == 0
        expected_scores = scores_alone(found.prompt) if wants_scores else []
        assert found.scores == expected_scores[: len(found.scores)]
        assert len(found.scores) == len(expected_scores) or not output.token_ids
        if output.prompt_logprobs is not None:
            assert output.prompt_logprobs and not output.token_ids and output.finish_reason is None
            return
        found.tokens += output.token_ids
        self.num_generated += len(output.token_ids)
        if output.error is not None:
            assert found.may_fail and output.finish_reason == "error" and not output.token_ids
            self.num_failed += 1
        elif output.finish_reason is not None:
            alone, reason = continue_alone(found.prompt, found.params, found.max_len)
            # A pool that shrank below what was said already ends the answer where it is.
            assert found.tokens[: len(alone)] == alone and output.finish_reason == reason
            assert len(found.tokens) == len(alone) or not output.token_ids
            assert found.tokens or len(found.scores) == len(expected_scores)
        else:
            alone, _ = continue_alone(found.prompt, found.params, len(found.prompt) + len(found.tokens))
            assert found.tokens == alone
            assert len(output.token_ids) == 1 or (found.params.constraint is not None and output.token_ids)
        if output.finish_reason is not None:
            assert found.sequence.is_finished
            self.runner.broken.discard(found.sequence)
            del self.live[key]

    def _check_counters(self) -> None:
        stats = self.engine.stats()
        assert (stats.generation_tokens, stats.aborted) == (self.num_generated, self.num_aborted)
        assert stats.failed == self.num_failed + self._num_untold()
        started = [s for s in self.sequences if s.num_generated or s.finish_reason == "length"]
        assert stats.cached_tokens == sum(s.num_cached_tokens for s in started)
        assert all(s.num_prefilled_tokens == s.num_prompt_tokens for s in started)
        assert stats.prompt_tokens == sum(s.num_prefilled_tokens - s.num_cached_tokens for s in self.sequences)

    def _num_untold(self) -> int:
        """Failures whose output comes with the next step: prompts that a shrunk pool cannot hold."""
        return sum(e.sequence.finish_reason == "error" for e in self.live.values())


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The engine logs each failure with its traceback, here some thousands."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.soak
@pytest.mark.timeout(36_000 if SOAK else 1200)
def test_any_history_gives_what_each_request_gets_alone() -> None:
    run_state_machine_as_test(
        EngineMachine,
        settings=settings(
            max_examples=HISTORIES,
            stateful_step_count=RULES,
            derandomize=not SOAK,
            database=None,
            deadline=None,
            print_blob=SOAK,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"{EngineMachine.num_operations} operations")
    assert EngineMachine.num_operations >= (100_000 if SOAK else 5_000)
