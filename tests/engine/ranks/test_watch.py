"""What rank 0 makes of what it sees of the others, without a process."""

import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from engine.errors import EngineDeadError
from engine.ranks import watch as module
from engine.ranks.messages import Alive, Arrived, Failed, Ready, Stage, encode
from engine.ranks.watch import Seat, Watch


class Other:
    """Rank 1."""

    def __init__(self) -> None:
        ours, self.theirs = multiprocessing.Pipe()
        self.code: int | None = None
        self.killed = False
        self.left: list[EngineDeadError] = []
        self.is_stopped = False
        self.seat = Seat(1, ours, lambda: self.code, lambda: self.is_stopped)
        self.watch = Watch([self.seat], self.kill, self.left.append)

    def kill(self) -> None:
        self.killed = True

    def say(self, *reports: Stage | Arrived | Ready | Alive | Failed) -> None:
        for report in reports:
            self.theirs.send_bytes(encode(report))

    def end(self) -> str:
        """Wait until this process would have been ended; why."""
        deadline = time.monotonic() + 20
        while not self.left and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.killed and len(self.left) == 1
        with pytest.raises(EngineDeadError):
            self.watch.check()
        return str(self.left[0])


@pytest.fixture
def other() -> Iterator[Other]:
    made = Other()
    made.watch.start()
    yield made
    made.watch.close()


def test_a_rank_that_arrives_late_is_waited_for_and_named(other: Other) -> None:
    told: list[tuple[str, float | None]] = []
    other.say(Stage("loading the weights", 0.25))

    def progress(stage: str, fraction: float | None) -> None:
        told.append((stage, fraction))
        if len(told) == 3:
            other.say(Arrived())

    other.watch.meet(progress)
    assert told[-1] == ("waiting for rank 1: loading the weights", 0.25)
    assert not other.killed and not other.left


def test_what_is_wrong_for_all_ranks_is_told_of_none(other: Other, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOAD_GRACE_SECONDS", 0.2)
    other.say(Failed("tensor_parallel: 3 does not divide it", "1 and 2 do.", is_everybodys=True))
    assert other.end() == "tensor_parallel: 3 does not divide it"
    assert other.left[0].hint == "1 and 2 do."


def test_an_end_is_everybodys(other: Other) -> None:
    other.say(Stage("loading the weights", 0.5))
    time.sleep(0.3)
    began, other.code = time.monotonic(), -9
    assert other.end() == "rank 1 (loading the weights) was killed by SIGKILL, perhaps for want of memory"
    assert time.monotonic() - began < 1.0
    with pytest.raises(EngineDeadError):
        other.watch.load("fusing operations")


def test_why_it_could_not_load_is_told(other: Other, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOAD_GRACE_SECONDS", 0.2)
    other.say(Stage("loading the weights", 0.5), Failed("its device has not enough memory", "Choose a smaller model."))
    assert other.end() == "rank 1 (loading the weights): its device has not enough memory"
    assert other.left[0].hint == "Choose a smaller model."


def test_a_step_that_takes_too_long_is_stuck(other: Other) -> None:
    other.say(Ready())
    other.watch.load(None)
    other.watch.step_seconds = 0.3
    other.watch.end_step(other.watch.begin_step())
    time.sleep(0.6)
    assert not other.left
    other.watch.begin_step()
    assert other.end() == "a step took more than 0.3 s: the ranks wait for each other"


def test_who_is_silent_in_a_step_that_takes_too_long_is_named(other: Other, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.2)
    other.say(Ready())
    other.watch.load(None)
    other.watch.step_seconds = 0.4
    other.watch.begin_step()
    assert other.end() == "a step took more than 0.4 s: rank 1 (serving) says nothing"


@pytest.mark.parametrize(("is_ready", "is_stopped"), [(True, False), (False, False), (False, True)])
def test_silence_is_an_end_too(is_ready: bool, is_stopped: bool, other: Other, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a rank that loads only a long one, since it may wait for a disk, unless it was stopped."""
    other.is_stopped = is_stopped
    monkeypatch.setattr(module, "silence_of", lambda step_seconds: 0.5)
    monkeypatch.setattr(module, "LOAD_SILENCE_SECONDS", 1.5)
    began = time.monotonic()
    other.say(*([Ready()] if is_ready else [Stage("starting", None)]))
    assert "said nothing for" in other.end()
    assert (is_ready or is_stopped) == (time.monotonic() - began < 1.5)


def test_ranks_that_wait_for_each_other_while_they_load_are_told_apart_from_those_that_load(
    other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOAD_SECONDS", 0.5)
    for count in range(4):
        time.sleep(0.2)
        other.say(Stage("loading the weights", count / 4))
    assert not other.left
    assert "rank 0 (starting) came no further for 0.5 s" in other.end() and "NCCL_P2P_DISABLE" in str(
        other.left[0].hint
    )


def test_what_fails_on_rank_0_ends_it_though_it_is_stuck_afterwards(other: Other) -> None:
    failure = other.watch.explain(RuntimeError("made up"))
    assert str(failure) == "rank 0 failed: RuntimeError" == other.end()


def test_a_watch_that_fails_is_an_end(other: Other) -> None:
    other.theirs.send_bytes(b"nonsense")
    assert other.end().startswith("ranks can no longer be watched: ")


def test_nobody_is_ended_once_the_others_are_to_end(other: Other) -> None:
    other.watch.close()
    other.code = 0
    time.sleep(0.5)
    assert not other.killed and not other.left


def test_what_is_said_is_heard_to_its_end(other: Other) -> None:
    """A rank may say why and be gone before it is listened to."""
    other.say(Failed("no room"))
    connection: Connection = other.theirs
    connection.close()
    other.code = 1
    assert other.end().endswith(": no room")
