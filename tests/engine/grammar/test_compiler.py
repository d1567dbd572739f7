"""Compiling constraints beside the step loop: deadlines, a process that is killed, caches bounded in bytes."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from engine.constraint import Constraint
from engine.errors import RequestError
from engine.grammar import compiler, worker_process
from engine.grammar.compiler import DEADLINE_SECONDS, ENTRY_BYTES, GrammarCompiler
from engine.grammar.grammar import Compiled
from engine.grammar.repeats import UnrepeatedGrammar
from engine.grammar.results import GrammarCache, Result
from engine.grammar.worker import Answer, Job
from engine.grammar.worker_process import WAIT_FACTOR
from tests.clocks import PATIENCE
from tests.places import ROOT

VOCAB_SIZE = 49152
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
DEADLINE = DEADLINE_SECONDS["llguidance"]


class Clock:
    """Stands until it is set, and knows how often it was looked at."""

    def __init__(self) -> None:
        self.now = 0.0
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.now

    def set(self, now: float) -> None:
        """Go on to `now`, and wait until a job under way has been held against it."""
        self.now, looks = now, self.looks
        given_up = time.monotonic() + PATIENCE
        while self.looks < looks + 3:
            assert time.monotonic() < given_up, "nobody looks at the clock"
            time.sleep(0.01)


class Bench:
    """A compiler, and a way to wait for its results."""

    def __init__(self, directory: Path, **options: object) -> None:
        self.woken = threading.Event()
        self.compiler = GrammarCompiler(
            directory,
            vocab_size=VOCAB_SIZE,
            eos_token_ids=frozenset({2}),
            on_done=self.woken.set,
            **options,  # type: ignore[arg-type]
        )
        self._key = 0

    def submit(self, source: str, kind: str = "regex", **fields: bool) -> int:
        self._key += 1
        constraint = Constraint(kind=kind, source=source, param="response_format.value", **fields)  # type: ignore[arg-type]
        self.compiler.submit(self._key, constraint)
        return self._key

    def wait(self, *keys: int) -> list[Result]:
        """The results of these keys, in their order."""
        found: dict[int, Result] = {}
        given_up = time.monotonic() + PATIENCE
        while not set(keys) <= set(found):
            assert self.woken.wait(given_up - time.monotonic()), "no result came"
            self.woken.clear()
            found |= self.compiler.collect()
        return [found[key] for key in keys]


@pytest.fixture(scope="module")
def bench(smollm2_dir: Path) -> Iterator[Bench]:
    """One that refuses nothing for its time."""
    bench = Bench(smollm2_dir, deadline=PATIENCE)
    yield bench
    bench.compiler.close()


@pytest.fixture(scope="module")
def hurried(smollm2_dir: Path) -> Iterator[Bench]:
    """One with the deadline of the product."""
    bench = Bench(smollm2_dir)
    yield bench
    bench.compiler.close()


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def timeless(smollm2_dir: Path, clock: Clock) -> Iterator[Bench]:
    """One that waits by a clock that stands."""
    bench = Bench(smollm2_dir, clock=clock)
    yield bench
    bench.compiler.close()


def test_results_come_by_key_and_are_independent(bench: Bench) -> None:
    first, second, third = (bench.submit(source) for source in ("[0-9]{3}", "[0-9]{3}", "yes|no"))
    a, b, c = bench.wait(first, second, third)
    assert not isinstance(a, RequestError) and not isinstance(b, RequestError) and not isinstance(c, RequestError)
    vocabulary = bench.compiler.vocabulary
    assert vocabulary is not None
    for token_id in vocabulary.spelled(b"123"):
        a.grammar.accept(token_id)
    assert a.grammar.is_finished and not b.grammar.can_end


def test_a_schema(bench: Bench) -> None:
    (result,) = bench.wait(bench.submit(json.dumps(SCHEMA), "json_schema"))
    assert not isinstance(result, RequestError)
    grammar = result.grammar
    vocabulary = bench.compiler.vocabulary
    assert vocabulary is not None
    for token_id in vocabulary.spelled(b'{"a": 12}'):
        grammar.accept(token_id)
    assert grammar.is_finished


def test_an_object_of_any_names_has_none_twice(bench: Bench) -> None:
    (result,) = bench.wait(bench.submit('{"type": "object"}', "json_schema"))
    assert isinstance(result, Compiled) and isinstance(result.grammar, UnrepeatedGrammar)
    grammar = result.grammar
    vocabulary = bench.compiler.vocabulary
    assert vocabulary is not None
    for token_id in vocabulary.spelled(b'{"ab": 12, "ab'):
        grammar.accept(token_id)
    row = np.zeros(-(-vocabulary.size // 32), dtype=np.int32)
    grammar.fill_bitmask(row)
    allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()
    assert allowed and not [token_id for token_id in allowed if vocabulary.tokens[token_id].startswith(b'"')]


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("regex", "("),
        ("regex", "(?=a)b"),
        ("lark", "start: nowhere"),
        ("json_schema", "{"),
        ("json_schema", '{"type": 3}'),
    ],
)
def test_what_cannot_be_compiled_blames_its_field(bench: Bench, kind: str, source: str) -> None:
    (result,) = bench.wait(bench.submit(source, kind))
    assert isinstance(result, RequestError)
    assert result.param == "response_format.value"
    assert "/" + "root" not in result.message and "Traceback" not in result.message and len(result.message) < 500


EXPLOSIVE = ["(a{1000}){1000}", "((a{0,1000}){0,1000}){0,1000}b", "(.*x){0,3000}y(.*z){0,3000}"]


@pytest.mark.slow
@pytest.mark.parametrize("source", EXPLOSIVE)
def test_an_explosive_expression_ends_in_its_budget(
    hurried: Bench, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as it is seen to have used that up; what comes next is compiled."""
    hurried.wait(hurried.submit("[0-9]{3}"))
    spent: list[float] = []

    def watched(pid: int) -> float:
        spent.append(compiler_cpu_seconds(pid))
        return spent[-1]

    compiler_cpu_seconds = worker_process.cpu_seconds
    monkeypatch.setattr(worker_process, "cpu_seconds", watched)
    (result,) = hurried.wait(hurried.submit(source))
    assert all(seconds - spent[0] < DEADLINE for seconds in spent[:-1]), "it went on beyond its budget"
    assert isinstance(result, RequestError) or result.grammar.forced_tokens() is not None
    (after,) = hurried.wait(hurried.submit("[0-9]{4}"))
    assert not isinstance(after, RequestError)


def test_a_process_that_does_not_answer_is_killed_and_replaced(timeless: Bench, clock: Clock) -> None:
    timeless.wait(timeless.submit("[0-9]{5}"))
    pid = timeless.compiler.process.pid
    assert pid is not None
    psutil.Process(pid).suspend()
    began = clock.now
    key = timeless.submit("[0-9]{6}")
    clock.set(began)
    clock.set(began + WAIT_FACTOR * DEADLINE - 0.1)
    assert psutil.pid_exists(pid) and not timeless.compiler.collect()
    clock.now = began + WAIT_FACTOR * DEADLINE
    (result,) = timeless.wait(key)
    assert isinstance(result, RequestError) and f"takes more than {DEADLINE:g} seconds" in result.message
    assert not psutil.pid_exists(pid)
    (after,) = timeless.wait(timeless.submit("[0-9]{7}"))
    assert not isinstance(after, RequestError)


def test_a_process_that_is_held_up_by_others_is_waited_for(timeless: Bench, clock: Clock) -> None:
    """What counts is its own time; a busy machine refuses nobody."""
    timeless.wait(timeless.submit("[a-z]{5}"))
    pid = timeless.compiler.process.pid
    assert pid is not None
    psutil.Process(pid).suspend()
    began = clock.now
    key = timeless.submit("[a-z]{6}")
    clock.set(began)
    clock.set(began + 1.1 * DEADLINE)
    psutil.Process(pid).resume()
    (result,) = timeless.wait(key)
    assert not isinstance(result, RequestError)
    assert timeless.compiler.process.pid == pid


def test_what_is_cheap_does_not_wait_for_what_takes_long(smollm2_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though that goes on for ever, as a process that stands still does."""
    bench = Bench(smollm2_dir, deadline=PATIENCE)
    bench.wait(bench.submit("[0-9]{10}"))
    spent = iter([0.0])
    monkeypatch.setattr(worker_process, "cpu_seconds", lambda pid: next(spent, 2 * worker_process.SLOW_SECONDS))
    process = psutil.Process(bench.compiler.process.pid)
    process.suspend()
    try:
        long = bench.submit("[0-9]{11}")
        given_up = time.monotonic() + PATIENCE
        while bench.compiler.second_process.pid is None:
            assert time.monotonic() < given_up, "no second way was opened"
            time.sleep(0.01)
        for number in range(3):
            (result,) = bench.wait(bench.submit(f"[ab]{{{number + 1}}}c"))
            assert not isinstance(result, RequestError)
        process.resume()
        (result,) = bench.wait(long)
        assert not isinstance(result, RequestError)
    finally:
        with suppress(psutil.NoSuchProcess):
            process.kill()
        bench.compiler.close()


def test_bombs_are_refused_before_they_are_compiled(bench: Bench) -> None:
    bombs = [f"(a{{1000}}){{{1000 + number}}}" for number in range(7)]
    keys = [bench.submit(bomb) for bomb in bombs]
    keys.append(bench.submit(json.dumps({"type": "string", "pattern": f"^{bombs[0]}$"}), "json_schema"))
    keys.append(bench.submit(f"start: /{bombs[0]}/", "lark"))
    for result in bench.wait(*keys):
        assert isinstance(result, RequestError) and result.param == "response_format.value"


def test_a_process_that_died_is_replaced(bench: Bench) -> None:
    bench.wait(bench.submit("[0-9]{8}"))
    pid = bench.compiler.process.pid
    assert pid is not None
    psutil.Process(pid).kill()
    (result,) = bench.wait(bench.submit("[0-9]{9}"))
    assert not isinstance(result, RequestError)


def test_a_process_that_dies_while_nobody_asks_is_replaced_and_leaves_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "LOOK_SECONDS", 0.02)
    bench.wait(bench.submit("[0-9]{7}"))
    pid = bench.compiler.process.pid
    assert pid is not None
    psutil.Process(pid).kill()
    given_up = time.monotonic() + PATIENCE
    while psutil.pid_exists(pid) or bench.compiler.process.pid in (None, pid):
        assert time.monotonic() < given_up, "it stays a zombie"
        time.sleep(0.01)


def test_a_cancelled_job_gives_nothing(bench: Bench) -> None:
    key = bench.submit("[a-c]{7}")
    bench.compiler.cancel(key)
    (after,) = bench.wait(bench.submit("[a-c]{8}"))
    assert not isinstance(after, RequestError)
    assert key not in dict(bench.compiler.collect())


def test_outlines_core_compiles_in_the_same_process(smollm2_dir: Path) -> None:
    bench = Bench(smollm2_dir, backend="outlines_core", deadline=PATIENCE)
    try:
        (result,) = bench.wait(bench.submit("[0-9]{3}"))
        assert not isinstance(result, RequestError)
        grammar = result.grammar
        vocabulary = bench.compiler.vocabulary
        assert vocabulary is not None
        for token_id in vocabulary.spelled(b"123"):
            grammar.accept(token_id)
        assert grammar.is_finished
    finally:
        bench.compiler.close()


def test_outlines_core_ends_in_its_budget_too(smollm2_dir: Path) -> None:
    bench = Bench(smollm2_dir, backend="outlines_core", deadline=1.0)
    try:
        (refusal,) = bench.wait(bench.submit("((.*a){30}.*b){30}(.*c){90}"))
        assert isinstance(refusal, RequestError) and "too complex" in refusal.message
    finally:
        bench.compiler.close()


def test_a_model_without_a_tokenizer_refuses_constraints(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    try:
        (result,) = bench.wait(bench.submit("a"))
        assert isinstance(result, RequestError) and "not available" in result.message
    finally:
        bench.compiler.close()


SOME = json.dumps({"properties": {"a": {"type": "array", "$dynamicRef": "#i"}}})


def test_what_is_left_out_is_remembered_with_the_grammar(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    ask = bench.compiler.process.ask

    def counted(constraint: Constraint) -> Answer:
        asked.append(constraint.strict)
        return ask(constraint)

    monkeypatch.setattr(bench.compiler.process, "ask", counted)
    kinds = (False, True, False, True)
    found = bench.wait(*(bench.submit(SOME, "json_schema", strict=strict) for strict in kinds))
    assert asked == [False, True], "equal ones are compiled once, strict ones apart"
    for strict, result in zip(kinds, found, strict=True):
        if strict:
            assert isinstance(result, RequestError) and "$dynamicRef" in result.message
        else:
            assert not isinstance(result, RequestError) and result.relaxed is not None
            assert result.relaxed.pointers == ("/response_format/value/properties/a/$dynamicRef",)


@pytest.mark.parametrize("strict", [True, False])
def test_what_is_late_is_followed_in_its_outermost_type(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, strict: bool
) -> None:
    exchange = bench.compiler.process.exchange

    def late(job: Job) -> Answer | None:
        return exchange(job) if job.rough else Answer(error="too late", is_late=True)

    monkeypatch.setattr(bench.compiler.process, "exchange", late)
    (result,) = bench.wait(bench.submit('{"type": "object", "required": ["a"]}', "json_schema", strict=strict))
    if strict:
        assert isinstance(result, RequestError) and result.message == "too late"
    else:
        assert not isinstance(result, RequestError) and result.relaxed is not None
        assert result.relaxed.pointers == ("/response_format/value",)


GROW = """
import json, sys, time
from pathlib import Path
import numpy, psutil
from engine.constraint import Constraint
from engine.grammar.compiler import GrammarCompiler
from engine.lifetime import give_memory_back
from tests.clocks import PATIENCE
compiler = GrammarCompiler(Path(sys.argv[1]), vocab_size=49152, eos_token_ids=frozenset({2}), deadline=PATIENCE)
row = numpy.zeros(1536, dtype=numpy.int32)
def follow(number, source):
    compiler.submit(number, Constraint(kind="json_schema", source=source))
    while not (found := compiler.collect()):
        time.sleep(0.001)
    grammar = found[0][1].grammar
    for _ in range(20):
        grammar.fill_bitmask(row)
        grammar.accept(int(numpy.flatnonzero(numpy.unpackbits(row.view(numpy.uint8), bitorder="little"))[0]))
def resident():
    give_memory_back()
    return psutil.Process().memory_info().rss
follow(0, "{}")
sizes = [resident()]
for number in range(1, 100):
    members = {f"p{number}_{n}": {"type": ("string", "integer", "array")[n % 3]} for n in range(30)}
    follow(number, json.dumps({"type": "object", "properties": members}))
sizes.append(resident())
held = compiler._cache.num_bytes
compiler._cache = None
sizes.append(resident())
compiler.close()
print(json.dumps([*sizes, held]))
"""


def test_what_is_remembered_takes_no_more_than_is_counted_and_goes_back(smollm2_dir: Path) -> None:
    command = [sys.executable, "-c", GROW, str(smollm2_dir)]
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    before, full, cleared, held = json.loads(said)
    assert full - before < 1.25 * held
    assert cleared - before < (full - before) / 3


def test_the_cache_is_bounded_in_bytes() -> None:
    cache = GrammarCache(10 * ENTRY_BYTES)
    error = RequestError("no")
    for number in range(10_000):
        cache.put(number.to_bytes(4, "little"), error, ENTRY_BYTES)
        cache.get((0).to_bytes(4, "little"))
    assert len(cache) == 10 and cache.num_bytes == 10 * ENTRY_BYTES
    assert cache.get((0).to_bytes(4, "little")) is error, "what is used stays"
    assert cache.get((5).to_bytes(4, "little")) is None
