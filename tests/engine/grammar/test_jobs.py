"""The order in which constraints are compiled, and what it goes by."""

import threading

import pytest

from engine.constraint import Constraint, SchemaSource
from engine.errors import RequestError
from engine.grammar.jobs import CHEAP_COST, MAX_QUEUED, MAX_SHARE, OVERTAKEN_SECONDS, JobQueue, estimated_cost
from engine.grammar.language.counts import MAX_POSITIONS, positions

BOMB = "(a{300}){300}"


def regex(source: str) -> Constraint:
    return Constraint(kind="regex", source=source)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def queue_of(*sources: str, clock: Clock | None = None) -> JobQueue:
    """Jobs with the keys 0, 1, ..."""
    jobs = JobQueue(clock or Clock())
    for key, source in enumerate(sources):
        jobs.put(key, regex(source), None, b"")
    return jobs


def keys_of(jobs: JobQueue, *, cheap: bool = False) -> list[int]:
    """All that can be taken, in order."""
    found = []
    while (job := jobs.take(cheap=cheap, timeout=0.0)) is not None:
        found.append(job.key)
    return found


def test_the_smaller_come_first_and_like_ones_in_their_order() -> None:
    assert keys_of(queue_of(BOMB, "[ab]c", BOMB, "[cd]e", "a{100}")) == [1, 3, 4, 0, 2]


def test_nobody_is_overtaken_for_ever() -> None:
    clock = Clock()
    jobs = queue_of(BOMB, "[ab]c", clock=clock)
    clock.now = OVERTAKEN_SECONDS + 1
    jobs.put(2, regex("[cd]e"), None, b"")
    assert keys_of(jobs) == [0, 1, 2]


def test_the_second_way_is_for_the_cheap() -> None:
    jobs = queue_of(BOMB, "[ab]c")
    assert keys_of(jobs, cheap=True) == [1] and keys_of(jobs) == [0]


def test_one_tenant_has_but_a_share() -> None:
    jobs = JobQueue()
    for key in range(MAX_SHARE):
        jobs.put(key, regex("a"), None, b"one")
    with pytest.raises(RequestError, match="this API key") as caught:
        jobs.put(MAX_SHARE, regex("a"), None, b"one")
    assert caught.value.code == "overloaded"
    for key in range(MAX_SHARE, MAX_QUEUED):
        jobs.put(key, regex("a"), None, b"two")
    with pytest.raises(RequestError, match=str(MAX_QUEUED)):
        jobs.put(MAX_QUEUED, regex("a"), None, b"three")
    jobs.drop(0)
    jobs.put(0, regex("a"), None, b"one")


def test_a_closed_queue_lets_go_who_waits() -> None:
    jobs = JobQueue()
    found: list[object] = []

    def take(cheap: bool) -> None:
        found.append(jobs.take(cheap=cheap))

    threads = [threading.Thread(target=take, args=(cheap,)) for cheap in (True, False)]
    for thread in threads:
        thread.start()
    jobs.close()
    for thread in threads:
        thread.join()
    assert found == [None, None]


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        ("", 0),
        ("abc", 3),
        ("a{3}", 3),
        ("a{2,5}", 5),
        ("a{2,}", 2),
        ("(ab{2}){3}c", 10),
        ("(?:a|bc){4}", 12),
        ("(?<name>a){4}(?=b{2})", 6),
        (r"\d{4}-\d{2}", 7),
        (r"\(a{3}\)", 5),
        ("[(a{9}]{3}", 3),
        (r"[\]{9}]{2}", 2),
        ("a{b}{2", 6),
        ("a*b+c?", 3),
        ("((a{10}){10}){10}", 1000),
        ("a)b(c", 3),
    ],
)
def test_counts_are_written_out(pattern: str, size: int) -> None:
    assert positions(pattern) == size


@pytest.mark.parametrize(
    "pattern", ["(a{1000}){1000}", "((a{99}){99}){99}", "a{99999999999999999999}", "((((a{9999}){9999}){9999}){9999})"]
)
def test_beyond_the_limit_nothing_is_multiplied(pattern: str) -> None:
    assert positions(pattern) == MAX_POSITIONS + 1


def test_what_constraints_cost() -> None:
    schema = Constraint(kind="lark", source="start: schema_0", schemas=(SchemaSource(param="p", schema="x" * 10**6),))
    assert estimated_cost(schema) > CHEAP_COST > estimated_cost(regex("a{100}")) > estimated_cost(None) == 0
