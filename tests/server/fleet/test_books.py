"""The rules of making room: by example, and walked at random with everything that may happen to a model."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.fleet.books import Holding, Moves, Wish, next_moves

PATIENCE = 20.0


def moves(total: int, holdings: Sequence[Holding] = (), wishes: Sequence[Wish] = (), now: float = 100.0) -> Moves:
    return next_moves(total, holdings, wishes, now=now, patience=PATIENCE)


def held(name: str, num_bytes: int, **more: Any) -> Holding:
    return Holding(name=name, num_bytes=num_bytes, **more)


def wish(name: str, num_bytes: int, **more: Any) -> Wish:
    return Wish(name=name, num_bytes=num_bytes, **{"since": 100.0, **more})


def test_what_fits_is_loaded_at_once_and_nothing_is_ended() -> None:
    found = moves(10, [held("a", 4)], [wish("b", 3), wish("c", 3)])
    assert found == Moves(load=["b", "c"])


def test_the_least_recently_used_goes_first_and_no_more_than_needed() -> None:
    holdings = [held("old", 1, last_used=1), held("older", 2, last_used=0), held("new", 4, last_used=2)]
    assert moves(8, holdings, [wish("b", 3)]).end == ["older"]
    assert moves(8, holdings, [wish("b", 4)]).end == ["older", "old"]
    # What the newest gives is enough, so the older ones need not go.
    assert moves(7, holdings, [wish("b", 4)]).end == ["new"]


@pytest.mark.parametrize("kept", [{"is_busy": True}, {"is_pinned": True}, {"stays_until": 101.0}, {"phase": "loading"}])
def test_what_must_stay_stays(kept: dict[str, Any]) -> None:
    found = moves(8, [held("a", 4, **kept), held("b", 4, is_busy=True)], [wish("c", 4)])
    assert not found.end and not found.load and not found.close
    assert found.again_at == (101.0 if "stays_until" in kept else 120.0)


def test_memory_of_what_is_ending_is_not_given_away() -> None:
    ending = held("a", 4, phase="ending")
    assert moves(8, [ending, held("b", 4)], [wish("c", 4)]) == Moves()  # it will have a's
    assert moves(8, [ending, held("b", 4)], [wish("c", 4), wish("d", 2)]) == Moves(end=["b"])


def test_what_cannot_fit_even_alone_is_refused_with_the_most_it_could_have() -> None:
    assert moves(10, [held("a", 4)], [wish("b", 11)]).refuse == {"b": 10}
    assert moves(10, [held("a", 4, is_pinned=True)], [wish("b", 7)]).refuse == {"b": 6}


def test_small_ones_pass_one_that_waits_but_not_for_ever() -> None:
    holdings = [held("a", 6, is_busy=True, last_used=1), held("b", 2, is_busy=True, last_used=2)]
    wishes = [wish("large", 8), wish("small", 2, since=105.0)]
    assert moves(10, holdings, wishes, now=105.0) == Moves(load=["small"], again_at=120.0)
    late = moves(10, holdings, wishes, now=120.0)
    assert late.close == ["a"] and not late.load  # what is free and what a has is enough


def test_the_loads_of_the_start_end_nobody() -> None:
    eager = wish("b", 8, may_end=False)
    assert moves(10, [held("a", 4)], [eager]).drop == ["b"]
    # What loads may turn out smaller.
    assert moves(10, [held("a", 4, phase="loading")], [eager]) == Moves()


def test_a_model_that_is_larger_than_it_was_thought_costs_the_idle_ones_their_place() -> None:
    assert moves(10, [held("grown", 8, last_used=2, is_busy=True), held("a", 4, last_used=1)]).end == ["a"]


def test_idle_ones_are_ended_in_time() -> None:
    holdings = [held("a", 1, idle_at=99.0), held("b", 1, idle_at=130.0), held("c", 1, idle_at=9.0, is_busy=True)]
    assert moves(10, holdings) == Moves(end=["a"], again_at=130.0)


class Device(RuleBasedStateMachine):
    """A device and models that are asked for, load, answer, die and are ended, in any order and at any time."""

    TOTAL = 12
    NAMES = "abcde"

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.sizes = {name: 2 + 2 * index for index, name in enumerate(self.NAMES)}  # 2 to 10
        self.phases: dict[str, str] = {}
        self.requests: dict[str, int] = dict.fromkeys(self.NAMES, 0)
        self.used: dict[str, float] = dict.fromkeys(self.NAMES, 0.0)
        self.stays: dict[str, float] = dict.fromkeys(self.NAMES, 0.0)
        self.closed: set[str] = set()
        self.wishes: dict[str, float] = {}
        self.waiting: dict[str, int] = dict.fromkeys(self.NAMES, 0)
        self.pinned = "a"

    def look(self) -> None:
        holdings = [
            Holding(
                name=name, num_bytes=self.sizes[name], phase=phase,  # type: ignore[arg-type]
                is_pinned=name == self.pinned, is_busy=bool(self.requests[name]),
                last_used=self.used[name], stays_until=self.stays[name],
            )
            for name, phase in self.phases.items()
        ]  # fmt: skip
        wanted = [Wish(name=name, num_bytes=self.sizes[name], since=since) for name, since in self.wishes.items()]
        found = next_moves(self.TOTAL, holdings, wanted, now=self.now, patience=PATIENCE)
        assert found.again_at > self.now
        for name in found.end:
            assert self.phases[name] == "ready" and not self.requests[name] and name != self.pinned
            assert self.stays[name] <= self.now
            self.phases[name] = "ending"
        for name in found.load:
            self.phases[name] = "loading"
            del self.wishes[name]
        for name in found.refuse:
            assert self.sizes[name] > self.TOTAL - self.sizes[self.pinned] * (self.pinned in self.phases)
            del self.wishes[name]
            self.waiting[name] = 0  # they are told
        self.closed = set(found.close)
        for name in self.phases:
            if self.phases[name] == "ready" and name not in self.closed:
                self.requests[name] += self.waiting[name]
                self.waiting[name] = 0

    @rule(name=st.sampled_from(NAMES))
    def ask(self, name: str) -> None:
        self.used[name] = self.now
        if self.phases.get(name) == "ready" and name not in self.closed:
            self.requests[name] += 1
        else:
            self.waiting[name] += 1
            if name not in self.phases:
                self.wishes.setdefault(name, self.now)
        self.look()

    @rule(name=st.sampled_from(NAMES))
    def answer(self, name: str) -> None:
        if self.requests[name]:
            self.requests[name] -= 1
            self.used[name] = self.now
            self.look()

    @rule(name=st.sampled_from(NAMES), works=st.booleans())
    def load(self, name: str, works: bool) -> None:
        if self.phases.get(name) == "loading":
            if works:
                self.phases[name] = "ready"
                self.stays[name] = self.now + 2.0
            else:
                del self.phases[name]
                self.waiting[name] = 0
            self.look()

    @rule(name=st.sampled_from(NAMES))
    def end(self, name: str) -> None:
        if self.phases.get(name) == "ending":
            del self.phases[name]
            if self.waiting[name]:
                self.wishes[name] = self.now
            self.look()

    @rule(seconds=st.sampled_from([0.5, 3.0, PATIENCE]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.look()

    @precondition(lambda self: any(self.waiting.values()))
    @rule()
    def in_the_end_everybody_is_answered_or_told(self) -> None:
        """If loads and ends succeed and requests end, nobody waits for ever, though others never stop asking."""
        for _ in range(60):
            self.now += 5.0
            self.look()
            for name in self.NAMES:
                self.load(name, True)
                self.end(name)
            for name in self.NAMES:
                while self.requests[name] > 1:
                    self.answer(name)
                if self.requests[name] and name in self.closed:
                    self.answer(name)
            if not any(self.waiting.values()):
                return
            busy = next((name for name in self.NAMES if self.phases.get(name) == "ready"), None)
            if busy is not None and busy not in self.closed:
                self.requests[busy] += 1
        raise AssertionError(f"{self.waiting} wait, {self.phases}, {self.wishes}")

    @invariant()
    def the_budget_holds(self) -> None:
        assert sum(self.sizes[name] for name in self.phases) <= self.TOTAL

    @invariant()
    def who_waits_waits_for_something(self) -> None:
        for name, count in self.waiting.items():
            assert not count or name in self.wishes or name in self.phases, name


TestDevice = Device.TestCase
TestDevice.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def lru_loads(names: Sequence[str], places: int) -> int:
    held_names: list[str] = []
    loads = 0
    for name in names:
        if name in held_names:
            held_names.remove(name)
        else:
            loads += 1
            held_names = held_names[-(places - 1) :]
        held_names.append(name)
    return loads


def test_one_after_the_other_costs_as_many_loads_as_lru_does() -> None:
    """200 requests over three models of which two fit."""
    names = random.Random(5).choices("abc", k=200)
    used: dict[str, float] = {}
    loads = 0
    for now, name in enumerate(names):
        if name not in used:
            found = moves(2, [held(other, 1, last_used=at) for other, at in used.items()], [wish(name, 1)], now=now)
            for victim in found.end:
                del used[victim]
            loads += 1
        used[name] = now
    assert loads == lru_loads(names, 2) < 100
