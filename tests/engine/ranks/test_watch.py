"""What rank 0 makes of what it sees of the others, without a process."""

import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from engine.errors import EngineDeadError
from engine.pulse import SILENCE_SECONDS
from engine.ranks import watch as module
from engine.ranks.messages import Alive, Arrived, Failed, Ready, Stage, encode
from engine.ranks.watch import GRACE_SECONDS, LOAD_SILENCE_SECONDS, QUIET_SECONDS, Seat, Watch
from tests.clocks import PATIENCE, wait_until


class Clock:
    """A `time` module whose time goes on by what is slept, and by what a test lets pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """The made-up time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """As if it took as long."""
        self.now += seconds


class Other:
    """Rank 1, and the watch over it by a clock."""

    def __init__(self, clock: Clock) -> None:
        ours, self.theirs = multiprocessing.Pipe()
        self.clock = clock
        self.code: int | None = None
        self.looks = 0
        self.killed = False
        self.left: list[EngineDeadError] = []
        self.is_stopped = False
        self.seat = Seat(1, ours, self.exit_code, lambda: self.is_stopped, heard=clock.now)
        self.watch = Watch([self.seat], self.kill, self.left.append)

    def exit_code(self) -> int | None:
        """Asked for at each look."""
        self.looks += 1
        return self.code

    def kill(self) -> None:
        self.killed = True

    def say(self, *reports: Stage | Arrived | Ready | Alive | Failed) -> None:
        for report in reports:
            self.theirs.send_bytes(encode(report))

    def be_heard(self, report: Stage | Ready) -> None:
        """Say something, and wait until it was heard."""
        self.say(report)
        wait_until(lambda: self.seat.is_ready if isinstance(report, Ready) else self.seat.stage == report)
        looks = self.looks
        wait_until(lambda: self.looks > looks)  # which comes when all of it was taken in

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and see that the watch minds none of it."""
        self.clock.now += seconds
        looks = self.looks
        wait_until(lambda: self.looks >= looks + 3 or self.killed)  # the second began after the clock was set
        assert not self.killed and not self.left

    def end(self) -> str:
        """Wait until this process would have been ended; why."""
        wait_until(lambda: self.left)
        assert self.killed and len(self.left) == 1
        with pytest.raises(EngineDeadError):
            self.watch.check()
        return str(self.left[0])


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Iterator[Other]:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    made = Other(clock)
    made.watch.start()
    yield made
    made.watch.close()


def test_a_rank_that_arrives_late_is_waited_for_and_named(other: Other) -> None:
    told: list[tuple[str, float | None]] = []
    other.say(Stage("loading the weights", 0.25))

    def progress(stage: str, fraction: float | None) -> None:
        told.append((stage, fraction))
        if fraction is not None and not other.seat.has_arrived:
            other.say(Arrived())
        wait_until(lambda: other.seat.has_arrived or other.seat.stage.fraction != fraction)

    other.watch.meet(progress)
    assert told[-1] == ("waiting for rank 1: loading the weights", 0.25)
    assert not other.killed and not other.left


def test_what_is_wrong_for_all_ranks_is_told_of_none(other: Other) -> None:
    other.say(Failed("tensor_parallel: 3 does not divide it", "1 and 2 do.", is_everybodys=True))
    assert other.end() == "tensor_parallel: 3 does not divide it"
    assert other.left[0].hint == "1 and 2 do."


def test_an_end_is_everybodys(other: Other) -> None:
    other.be_heard(Stage("loading the weights", 0.5))
    other.code = -9
    assert other.end() == "rank 1 (loading the weights) was killed by SIGKILL, perhaps for want of memory"
    assert other.clock.now < 2 * GRACE_SECONDS
    with pytest.raises(EngineDeadError):
        other.watch.load("fusing operations")


def test_why_it_could_not_load_is_told(other: Other) -> None:
    other.say(Stage("loading the weights", 0.5), Failed("its device has not enough memory", "Choose a smaller model."))
    assert other.end() == "rank 1 (loading the weights): its device has not enough memory"
    assert other.left[0].hint == "Choose a smaller model."


def test_a_step_that_takes_too_long_is_stuck(other: Other) -> None:
    other.be_heard(Ready())
    other.watch.load(None)
    other.watch.step_seconds = 0.3
    other.watch.end_step(other.watch.begin_step())
    other.pass_time(0.6)
    other.watch.begin_step()
    other.pass_time(0.29)
    other.clock.now += 0.02
    assert other.end() == "a step took more than 0.3 s: the ranks wait for each other"


def test_who_is_silent_in_a_step_that_takes_too_long_is_named(other: Other) -> None:
    other.be_heard(Ready())
    other.watch.load(None)
    other.watch.step_seconds = 4.0
    other.watch.begin_step()
    other.pass_time(1.1 * QUIET_SECONDS)
    other.clock.now = 4.1
    assert other.end() == "a step took more than 4 s: rank 1 (serving) says nothing"


@pytest.mark.parametrize(("is_ready", "is_stopped"), [(True, False), (False, False), (False, True)])
def test_silence_is_an_end_too(is_ready: bool, is_stopped: bool, other: Other) -> None:
    """Of a rank that loads only a long one, since it may wait for a disk, unless it was stopped."""
    other.is_stopped = is_stopped
    other.be_heard(Ready() if is_ready else Stage("loading the weights", None))
    limit = SILENCE_SECONDS if is_ready or is_stopped else LOAD_SILENCE_SECONDS
    other.pass_time(limit - 0.1)
    other.clock.now = limit + 0.1
    assert other.end().endswith(f"said nothing for {limit:g} s")


def test_ranks_that_wait_for_each_other_while_they_load_are_told_apart_from_those_that_load(
    other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOAD_SECONDS", 50.0)  # less than what a rank that loads may say nothing
    for count in range(4):
        other.pass_time(40.0)
        other.be_heard(Stage("loading the weights", count / 4))
    other.clock.now += 50.1
    assert "rank 0 (starting) came no further for 50 s" in other.end()
    assert "NCCL_P2P_DISABLE" in str(other.left[0].hint)


def test_what_fails_on_rank_0_ends_it_though_it_is_stuck_afterwards(other: Other) -> None:
    failure = other.watch.explain(RuntimeError("made up"))
    assert str(failure) == "rank 0 failed: RuntimeError" == other.end()


def test_a_watch_that_fails_is_an_end(other: Other) -> None:
    other.theirs.send_bytes(b"nonsense")
    assert other.end().startswith("ranks can no longer be watched: ")


def test_nobody_is_ended_once_the_others_are_to_end(other: Other) -> None:
    other.watch.close()
    other.code = 0
    other.watch._thread.join(PATIENCE)
    assert not other.watch._thread.is_alive() and not other.killed and not other.left


def test_what_is_said_is_heard_to_its_end(other: Other) -> None:
    """A rank may say why and be gone before it is listened to."""
    other.say(Failed("no room"))
    connection: Connection = other.theirs
    connection.close()
    other.code = 1
    assert other.end().endswith(": no room")
