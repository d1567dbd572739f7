"""Bounded places that keys share, by a clock of our own."""

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.edge.queues import ModelQueue, Place, QueueLimits
from server.edge.rooms import FIRST_GUESS_SECONDS, LONGEST_SECONDS, Room
from server.protocol.errors import ApiError

OWNERS = (b"a", b"b", b"c")


@dataclass
class Clock:
    now: float = 1e6

    def __call__(self) -> float:
        return self.now


def shared() -> bool:
    return True


def test_one_key_leaves_room_for_the_next() -> None:
    room = Room(16, is_shared=shared)
    for owner, most in ((b"a", 8), (b"b", 4), (b"c", 2), (b"d", 1), (b"e", 1)):
        while not room.lacks(owner, 1):
            room.take(owner, 1)
        assert room._of[owner] == most
    assert room.lacks(b"f", 1) == 1 and room.used == 16
    alone = Room(16)
    assert not alone.lacks(b"a", 16) and alone.lacks(b"a", 18) == 2


def test_when_to_come_again_is_what_was_measured() -> None:
    clock = Clock()
    room = Room(4, clock=clock)
    room.take(b"a", 4)
    assert room.retry_after(1) == FIRST_GUESS_SECONDS
    for _ in range(30):
        clock.now += 5
        room.give_back(b"a", 1)
        room.take(b"a", 1)
    # Each that is refused comes behind those before it.
    assert [room.retry_after(1) for _ in range(3)] == [5, 10, 15]
    clock.now += 5
    room.give_back(b"a", 1)
    room.take(b"a", 1)
    assert room.retry_after(1) == 15
    clock.now += 20
    room.give_back(b"a", 4)
    clock.now += 10_000  # nobody was there meanwhile, so this says nothing of the pace
    room.take(b"a", 4)
    assert room.retry_after(1) == 5
    clock.now += 1000
    assert room.retry_after(1) == LONGEST_SECONDS


def test_a_prompt_that_waits_alone_may_be_larger_than_the_queue() -> None:
    queue = ModelQueue("m", QueueLimits(max_queue=2, max_queue_tokens=100), clock=Clock())
    place = queue.enter(b"a", 3)
    place.bring(500)
    assert queue.is_full
    with pytest.raises(ApiError) as caught:
        queue.enter(b"b", 1)
    assert caught.value.status == 503 and caught.value.code == "overloaded" and "Retry-After" in caught.value.headers
    place.release()
    assert (queue.answers.used, queue.tokens.used, queue.is_full) == (0, 0, False)
    first, second = queue.enter(b"a", 1), queue.enter(b"a", 1)
    first.bring(60)
    with pytest.raises(ApiError) as caught:
        second.bring(60)
    assert "60" in str(caught.value) and "100" in str(caught.value)
    second.bring(40)
    for place in (first, second, second):
        place.release()
    assert (queue.answers.used, queue.tokens.used) == (0, 0)


class QueueMachine(RuleBasedStateMachine):
    """Against plain books: bounds hold, a key that waits for nothing gets in while there is room, all is given back."""

    @initialize(answers=st.integers(1, 12), tokens=st.integers(1, 200), several=st.booleans())
    def begin(self, answers: int, tokens: int, several: bool) -> None:
        self.clock = Clock()
        self.several = several
        limits = QueueLimits(max_queue=answers, max_queue_tokens=tokens)
        self.queue = ModelQueue("m", limits, is_shared=lambda: several, clock=self.clock)
        self.places: list[tuple[Place, bytes, int, int]] = []

    def mine(self, owner: bytes, what: int) -> int:
        return sum(place[what] for place in self.places if place[1] == owner)  # type: ignore[misc]

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(owner=st.sampled_from(OWNERS), answers=st.integers(1, 4), tokens=st.integers(1, 80))
    def enter(self, owner: bytes, answers: int, tokens: int) -> None:
        free = self.queue.answers.limit - self.queue.answers.used
        try:
            place = self.queue.enter(owner, answers)
        except ApiError as error:
            assert 1 <= int(error.headers["Retry-After"]) <= LONGEST_SECONDS
            full = answers > free or self.queue.tokens.used >= self.queue.tokens.limit
            assert full or (self.several and self.mine(owner, 2))
            return
        self.places.append((place, owner, answers, 0))
        try:
            place.bring(tokens)
        except ApiError:
            full = self.queue.tokens.used + tokens > self.queue.tokens.limit
            assert full or (self.several and self.mine(owner, 3))
            return
        self.places[-1] = (place, owner, answers, tokens)

    @precondition(lambda self: self.places)
    @rule(which=st.integers(0, 50), again=st.booleans())
    def leave(self, which: int, again: bool) -> None:
        place, *_ = self.places.pop(which % len(self.places))
        place.release()
        if again:
            place.release()

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "queue"):
            return
        for room, what in ((self.queue.answers, 2), (self.queue.tokens, 3)):
            amounts = [place[what] for place in self.places]
            assert room.used == sum(amounts)  # type: ignore[arg-type]
            assert room.used <= room.limit or sum(1 for amount in amounts if amount) == 1
            assert room._of == {owner: mine for owner in OWNERS if (mine := self.mine(owner, what))}


QueueMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestQueue = QueueMachine.TestCase
