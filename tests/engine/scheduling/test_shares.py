"""Fair turns between tenants: the counts alone under random play, then in the scheduler."""

from collections import Counter
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.sampling_params import SamplingParams
from engine.scheduling.block_manager import BlockManager
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.sequence import Sequence
from engine.scheduling.shares import MOST_OWED, Shares

LARGEST = 500
TENANTS = (b"a", b"b", b"c")


@dataclass(eq=False)
class Item:
    tenant: bytes
    tokens: int
    served: int = 0


class SharesMachine(RuleBasedStateMachine):
    """Items wait, run and are computed token by token in any order; who waits all the while gets its share."""

    @initialize(weights=st.tuples(*[st.sampled_from([0.5, 1.0, 3.0])] * len(TENANTS)))
    def begin(self, weights: tuple[float, ...]) -> None:
        self.shares = Shares()
        self.weights = dict(zip(TENANTS, weights, strict=True))
        self.waiting: list[Item] = []
        self.running: list[Item] = []
        self.backlogged: dict[frozenset[bytes], dict[bytes, float]] = {}
        """By pair of tenants, what each was given since both have been waiting without a pause, by weight."""

    @rule(tenant=st.sampled_from(TENANTS), tokens=st.integers(1, LARGEST), count=st.integers(1, 20))
    def arrive(self, tenant: bytes, tokens: int, count: int) -> None:
        for _ in range(count):
            item = Item(tenant, tokens)
            self.shares.enter(tenant)
            self.shares.wait(tenant)
            self.waiting.append(item)

    @precondition(lambda self: self.waiting and len(self.running) < 4)
    @rule()
    def admit(self) -> None:
        item = self.shares.first(self.waiting)
        assert item is next(one for one in self.waiting if one.tenant == item.tenant), "not the first of its tenant"
        self.waiting.remove(item)
        self.shares.proceed(item.tenant)
        self.running.append(item)
        self.serve(item, item.tokens)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 3))
    def end(self, which: int) -> None:
        item = self.running.pop(which % len(self.running))
        self.shares.leave(item.tenant)

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 100))
    def abort(self, which: int) -> None:
        item = self.waiting.pop(which % len(self.waiting))
        self.shares.proceed(item.tenant)
        self.shares.leave(item.tenant)

    def serve(self, item: Item, tokens: int) -> None:
        self.shares.charge(item.tenant, tokens, self.weights[item.tenant])
        for given in self.backlogged.values():
            if item.tenant in given:
                given[item.tenant] += tokens / self.weights[item.tenant]

    @invariant()
    def who_waits_all_the_while_gets_its_share(self) -> None:
        if not hasattr(self, "shares"):
            return
        self.shares.check(self.waiting, [*self.waiting, *self.running])
        waits = {item.tenant for item in self.waiting}
        for a in TENANTS:
            for b in TENANTS:
                pair = frozenset((a, b))
                if len(pair) < 2:
                    continue
                if not pair <= waits:
                    self.backlogged.pop(pair, None)
                    continue
                given = self.backlogged.setdefault(pair, {a: 0.0, b: 0.0})
                # Where one began behind, by at most what may be owed, and then one item more each.
                assert abs(given[a] - given[b]) <= MOST_OWED + 2 * LARGEST / min(self.weights.values())


SharesMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
TestShares = SharesMachine.TestCase


def sequence(number: int, tenant: bytes, *, prompt: int = 4, priority: int = 0, weight: float = 1.0) -> Sequence:
    return Sequence(
        request_id=number, prompt_token_ids=[number % 7 + 1] * prompt, params=SamplingParams(max_tokens=8), seed=0,
        max_len=prompt + 8, tenant=tenant, priority=priority, weight=weight,
    )  # fmt: skip


def make_scheduler(slots: int) -> Scheduler:
    return Scheduler(BlockManager(64, 4, prefix_cache=False), max_num_seqs=slots, max_batched_tokens=256)


def play(scheduler: Scheduler, sequences: list[Sequence], *, length: int = 3) -> list[int]:
    """Compute everything, each answer of `length` tokens; the numbers in the order in which they began."""
    for one in sequences:
        scheduler.add(one)
    begun: list[int] = []
    while scheduler.has_work:
        for row in scheduler.schedule():
            one = row.sequence
            if one.request_id not in begun:
                begun.append(one.request_id)
            scheduler.advance(row)
            scheduler.commit(row)
            if row.end == one.num_tokens:
                one.token_ids.append(1)
            if one.num_generated >= length:
                scheduler.finish(one, "stop")
        scheduler.check()
    return begun


def test_a_burst_lets_another_tenant_pass() -> None:
    burst = [sequence(number, b"a") for number in range(50)]
    begun = play(make_scheduler(2), [*burst, sequence(100, b"b"), sequence(101, b"b")])
    assert begun.index(100) <= 2 and begun.index(101) <= 5
    assert [number for number in begun if number < 100] == list(range(50))


def test_two_bursts_take_turns_by_tokens_and_weight() -> None:
    def begun_of(prompts: tuple[int, int], weights: tuple[float, float]) -> Counter[bytes]:
        bursts = [
            sequence(number, tenant, prompt=prompt, weight=weight)
            for number, (tenant, prompt, weight) in enumerate(
                [*[(b"a", prompts[0], weights[0])] * 40, *[(b"b", prompts[1], weights[1])] * 40]
            )
        ]
        first = play(make_scheduler(1), bursts)[:20]
        return Counter(bursts[number].tenant for number in first)

    assert begun_of((4, 4), (1.0, 1.0)) == {b"a": 10, b"b": 10}
    assert begun_of((4, 4), (3.0, 1.0)) == {b"a": 15, b"b": 5}
    # Of requests of 31 and of 7 tokens, as many tokens each.
    assert begun_of((28, 4), (1.0, 1.0))[b"b"] == 16


def test_priority_goes_before_fairness() -> None:
    burst = [sequence(number, b"a", priority=-1) for number in range(5)]
    begun = play(make_scheduler(1), [sequence(10, b"b"), *burst])
    assert begun == [*range(5), 10]


def test_what_was_taken_while_nobody_waited_is_owed_only_in_part() -> None:
    shares = Shares()
    for tenant in (b"a", b"b"):
        shares.enter(tenant)
    shares.charge(b"a", 1_000_000, 1.0)
    items = [Item(tenant, 100) for tenant in (b"a", b"b") for _ in range(200)]
    for item in items:
        shares.wait(item.tenant)
    turns = 0
    while (item := shares.first(items)).tenant != b"a":
        shares.charge(b"b", item.tokens, 1.0)
        items.remove(item)
        turns += 1
    assert turns <= MOST_OWED / 100 + 1


def test_all_begin_anew_when_nobody_is_left() -> None:
    shares = Shares()
    shares.enter(b"a")
    shares.charge(b"a", 1000, 1.0)
    shares.leave(b"a")
    assert not shares._served
