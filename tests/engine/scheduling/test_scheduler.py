"""The scheduler and the block manager over a fake model: no torch, milliseconds."""

import hashlib
import random
import sys

import pytest

from engine.sampling_params import SamplingParams
from engine.scheduling.block_manager import BlockManager, root_digest
from engine.scheduling.scheduler import MAX_PREEMPTIONS, Scheduler
from engine.scheduling.sequence import Sequence, Status
from engine.scheduling.stop import finish_reason

BLOCK_SIZE = 4
VOCAB = 3


class FakeModel:
    """KV memory of token ids: the next token is a hash of what the blocks of a sequence really hold.

    A wrong block, a lost write or a slot shared by two sequences therefore changes the output.
    """

    def __init__(self, num_blocks: int) -> None:
        self.memory: dict[tuple[int, int], int] = {}
        self.blocks = BlockManager(num_blocks, BLOCK_SIZE)

    def run(self, sequence: Sequence, num_tokens: int) -> int:
        first = sequence.num_computed_tokens
        for position in range(first, first + num_tokens):
            block = sequence.block_table[position // BLOCK_SIZE]
            self.memory[block, position % BLOCK_SIZE] = sequence.token_ids[position]
        seen = [self.memory[sequence.block_table[p // BLOCK_SIZE], p % BLOCK_SIZE] for p in range(first + num_tokens)]
        return next_token(seen)


def next_token(token_ids: list[int]) -> int:
    return hashlib.sha256(bytes(token_ids)).digest()[0] % VOCAB


def alone(prompt: list[int], max_tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(max_tokens):
        ids.append(next_token(ids))
    return ids


def make(prompt: list[int], max_tokens: int, request_id: int = 0, salt: bytes = b"") -> Sequence:
    return Sequence(
        request_id=request_id,
        prompt_token_ids=prompt,
        params=SamplingParams(max_tokens=max_tokens),
        seed=0,
        max_len=len(prompt) + max_tokens,
        root_digest=root_digest(salt),
    )


def step(scheduler: Scheduler, model: FakeModel) -> None:
    rows = scheduler.schedule()
    assert rows or not scheduler.has_work, "nothing can run"
    assert len({id(row.sequence) for row in rows}) == len(rows)
    assert sum(row.num_tokens for row in rows) <= scheduler.max_batched_tokens
    for row in rows:
        token = model.run(row.sequence, row.num_tokens)
        samples = row.samples
        scheduler.advance(row)
        scheduler.commit(row)
        if samples:
            row.sequence.token_ids.append(token)
            reason = finish_reason(row.sequence)
            if reason:
                scheduler.finish(row.sequence, reason)
    scheduler.check()


def run_to_idle(scheduler: Scheduler, model: FakeModel, limit: int = 10_000) -> None:
    for _ in range(limit):
        if not scheduler.has_work:
            return
        step(scheduler, model)
    raise AssertionError("starved")


@pytest.mark.parametrize("num_blocks", [6, 9, 40])
@pytest.mark.parametrize("budget", [4, 7, 64])
def test_every_mix_gives_what_each_gets_alone(num_blocks: int, budget: int) -> None:
    generator = random.Random(num_blocks * 100 + budget)
    model = FakeModel(num_blocks)
    scheduler = Scheduler(model.blocks, max_num_seqs=4, max_batched_tokens=budget, max_prefill_tokens=3)
    sequences = []
    for request_id in range(60):
        prompt = [generator.randrange(VOCAB) for _ in range(generator.randint(1, 12))]
        sequence = make(prompt, generator.randint(1, 10), request_id)
        sequences.append(sequence)
        scheduler.add(sequence)
        for _ in range(generator.randint(0, 3)):
            step(scheduler, model)
    run_to_idle(scheduler, model)
    for sequence in sequences:
        assert sequence.token_ids == alone(sequence.token_ids[: sequence.num_prompt_tokens], sequence.params.max_tokens)
        assert sequence.num_preemptions <= MAX_PREEMPTIONS
    assert model.blocks.num_owned == 0
    if num_blocks == 6:
        assert scheduler.num_preemptions > 0


def test_decode_is_not_starved_by_a_long_prompt() -> None:
    model = FakeModel(100)
    scheduler = Scheduler(model.blocks, max_num_seqs=4, max_batched_tokens=64, max_prefill_tokens=8)
    decoding = [make([i, 1], 40) for i in range(3)]
    for sequence in decoding:
        scheduler.add(sequence)
    step(scheduler, model)
    scheduler.add(make([1] * 100, 1))
    for _ in range(10):
        before = [s.num_tokens for s in decoding]
        rows = scheduler.schedule()
        assert sum(row.num_tokens for row in rows if row.num_tokens > 1) <= 8
        for row in rows:
            scheduler.advance(row)
            scheduler.commit(row)
            if row.sequence in decoding:
                row.sequence.token_ids.append(0)
        assert [s.num_tokens for s in decoding] == [n + 1 for n in before]


def test_prefix_is_shared_within_a_salt_only() -> None:
    model = FakeModel(40)
    scheduler = Scheduler(model.blocks, max_num_seqs=4, max_batched_tokens=64)
    prompt = [1, 2, 0, 1] * 4
    first, same, other = make(prompt, 2, salt=b"a"), make(prompt, 2, salt=b"a"), make(prompt, 2, salt=b"b")
    for sequence in (first, same, other):
        scheduler.add(sequence)
        run_to_idle(scheduler, model)
    assert (first.num_cached_tokens, same.num_cached_tokens, other.num_cached_tokens) == (0, 12, 0)
    assert first.token_ids == same.token_ids == other.token_ids


def test_followers_wait_for_their_leader_and_share_its_blocks() -> None:
    model = FakeModel(40)
    scheduler = Scheduler(model.blocks, max_num_seqs=4, max_batched_tokens=8)
    prompt = [1, 2, 0, 1, 2] * 4
    leader = make(prompt, 6)
    follower = Sequence(
        request_id=0, index=1, prompt_token_ids=prompt, params=leader.params, seed=1, max_len=26, leader=leader,
        root_digest=leader.root_digest,
    )  # fmt: skip
    scheduler.add(leader)
    scheduler.add(follower)
    while follower.status is Status.WAITING:
        step(scheduler, model)
    assert follower.num_cached_tokens == 16
    assert follower.block_table[:4] == leader.block_table[:4]
    run_to_idle(scheduler, model)
    assert follower.token_ids == leader.token_ids


def test_who_was_preempted_often_enough_gives_way_no_more() -> None:
    """Then even the oldest gives its own blocks back rather than take them from the newest."""
    model = FakeModel(8)
    scheduler = Scheduler(model.blocks, max_num_seqs=2, max_batched_tokens=64)
    oldest, newest = make([1] * 12, 19, 0, salt=b"a"), make([2] * 4, 13, 1, salt=b"b")
    scheduler.add(oldest)
    scheduler.add(newest)
    for _ in range(MAX_PREEMPTIONS):
        step(scheduler, model)
        scheduler.preempt(newest)
    run_to_idle(scheduler, model)
    assert (oldest.num_preemptions, newest.num_preemptions) == (1, MAX_PREEMPTIONS)
    for sequence in (oldest, newest):
        prompt = sequence.token_ids[: sequence.num_prompt_tokens]
        assert sequence.token_ids == alone(prompt, sequence.params.max_tokens)


def test_finish_is_idempotent_at_any_moment() -> None:
    model = FakeModel(8)
    scheduler = Scheduler(model.blocks, max_num_seqs=2, max_batched_tokens=4)
    sequences = [make([i % VOCAB] * 9, 4, i) for i in range(4)]
    for sequence in sequences:
        scheduler.add(sequence)
    step(scheduler, model)
    for sequence in sequences:
        scheduler.finish(sequence, "abort")
        scheduler.finish(sequence, "abort")
        scheduler.check()
    assert not scheduler.has_work and model.blocks.num_owned == 0


def test_eviction_takes_the_end_of_a_chain_first() -> None:
    model = FakeModel(8)
    scheduler = Scheduler(model.blocks, max_num_seqs=2, max_batched_tokens=64)
    prompt = [1, 2, 0, 1] * 5
    scheduler.add(make(prompt, 1))
    run_to_idle(scheduler, model)
    assert model.blocks.num_cached == 5
    scheduler.add(make([0] * 15, 1))  # takes the three free blocks and one cached
    run_to_idle(scheduler, model)
    again = make(prompt, 1)
    scheduler.add(again)
    run_to_idle(scheduler, model)
    assert again.num_cached_tokens == 16


def test_the_device_line() -> None:
    """Everything above it runs without torch."""
    import subprocess

    modules = ["errors", "sampling_params", "config", "messages", "client"]
    modules += [f"scheduling.{name}" for name in ("sequence", "block_manager", "scheduler", "stop")]
    code = ";".join(f"import engine.{m}" for m in modules) + ";import sys;assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
