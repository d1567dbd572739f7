"""Compiles constraints beside the step loop, in a process that is killed when it takes too long.

One thread takes jobs in their order. What has compiled, or was refused, is remembered within a bound in bytes, so a
repeated constraint costs a lookup and a repeated attack one more.
"""

import hashlib
import logging
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import llguidance
import msgspec
import psutil

from engine.config import ConstraintBackend
from engine.constraint import Constraint, ReasoningBudget, Relaxed
from engine.errors import HeadraceError, RequestError
from engine.frames import read_frame, write_message
from engine.grammar.backend_llguidance import compile_grammar, make_tokenizer
from engine.grammar.backend_outlines import load_index
from engine.grammar.grammar import Compiled, Grammar
from engine.grammar.reasoning import EndMark, ReasoningGrammar
from engine.grammar.repeats import unrepeated
from engine.grammar.results import GrammarCache, Result
from engine.grammar.token_index import TokenIndex
from engine.grammar.vocabulary import Vocabulary
from engine.grammar.worker import Answer, Job, Setup

logger = logging.getLogger(__name__)

MAX_QUEUED = 256
MAX_CACHE_BYTES = 256 * 1024 * 1024
ENTRY_BYTES = 128 * 1024
"""What a compiled grammar holds beside its text: parser and lexer tables that grow with use."""
TEXT_FACTOR = 16
MAX_MARKS = 16
DEADLINE_SECONDS: dict[ConstraintBackend, float] = {"llguidance": 2.0, "outlines_core": 10.0}
"""Of the process's own time, so that a busy machine refuses nobody."""
WAIT_FACTOR = 5
"""So many deadlines are waited for at most, by the clock on the wall: other constraints wait meanwhile."""
START_SECONDS = 60.0
SLOW_SECONDS = 0.1
"""A job that takes longer, of the process's own time, goes on at the lowest priority."""
LOWEST_PRIORITY = 19


class GrammarCompiler:
    """Submit constraints, collect grammars. All methods are for the engine's thread."""

    def __init__(
        self,
        directory: Path,
        *,
        vocab_size: int,
        eos_token_ids: frozenset[int],
        backend: ConstraintBackend = "llguidance",
        on_done: Callable[[], None] = lambda: None,
        deadline: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`directory` holds tokenizer.json. `on_done` is called from another thread when a result can be collected.

        `clock` tells, in seconds, for how long a job has been waited. Nothing is started before `start` or the first
        `submit`.
        """
        self.vocabulary: Vocabulary | None = None
        """Set before the first result comes."""
        self._setup = Setup(str(directory), vocab_size, sorted(eos_token_ids))
        self._backend = backend
        self._deadline = DEADLINE_SECONDS[backend] if deadline is None else deadline
        self._on_done = on_done
        self._clock = clock
        self._jobs: queue.Queue[tuple[int, Constraint | None, ReasoningBudget | None] | None] = queue.Queue()
        self._done: queue.SimpleQueue[tuple[int, Result]] = queue.SimpleQueue()
        self._pending: set[int] = set()
        self._cache = GrammarCache(MAX_CACHE_BYTES)
        self._marks: dict[str, EndMark] = {}
        self._worker: subprocess.Popen[bytes] | None = None
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._index: TokenIndex | None = None
        self._thread: threading.Thread | None = None

    @property
    def worker_pid(self) -> int | None:
        """Process id of the compiling process, None while there is none."""
        return self._worker.pid if self._worker is not None else None

    def start(self) -> None:
        """Read the vocabulary and start the compiling process, in the background; once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="grammar compiler", daemon=True)
            self._thread.start()

    def submit(self, key: int, constraint: Constraint | None, budget: ReasoningBudget | None = None) -> None:
        """Ask for the grammar of a constraint, or a budget, or both; it comes under `key`.

        Raises `RequestError` where too many are waiting.
        """
        if len(self._pending) >= MAX_QUEUED:
            raise RequestError(f"{MAX_QUEUED} constraints wait to be compiled already", code="overloaded")
        self.start()
        self._pending.add(key)
        self._jobs.put((key, constraint, budget))

    def cancel(self, key: int) -> None:
        """Let the result of a job be dropped; unknown keys are ignored."""
        self._pending.discard(key)

    def collect(self) -> list[tuple[int, Result]]:
        """What was finished since the last call: for each key a grammar of its own, or why there is none."""
        collected = []
        while not self._done.empty():
            key, result = self._done.get()
            if key in self._pending:
                self._pending.discard(key)
                collected.append((key, result))
        return collected

    def close(self) -> None:
        """End the process and the thread, which may be at work."""
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join()
        self._kill()

    def _run(self) -> None:
        self._prepare()
        while (job := self._jobs.get()) is not None:
            key, constraint, budget = job
            if key not in self._pending:
                continue
            try:
                result = self._grammar(constraint, budget)
            except Exception:
                logger.exception("a constraint could not be compiled")
                result = RequestError("internal error while compiling the constraint")
            self._done.put((key, result))
            self._on_done()
            if self._worker is None:
                self._start_worker()  # while nobody waits for it

    def _grammar(self, constraint: Constraint | None, budget: ReasoningBudget | None) -> Result:
        """A grammar of the request's own: the constraint's, behind the reasoning that comes before it."""
        inner: Grammar | None = None
        relaxed: Relaxed | None = None
        if constraint is not None:
            result = self._result(constraint)
            if isinstance(result, RequestError):
                return result
            inner, relaxed = result.grammar.copy(), result.relaxed
        end = budget.end if budget is not None else constraint.after if constraint is not None else ""
        if not end:
            assert inner is not None
            return Compiled(inner, relaxed)
        if self.vocabulary is None:
            return RequestError("a reasoning budget is not available for this model", param="max_reasoning_tokens")
        if end not in self._marks:
            if len(self._marks) >= MAX_MARKS:
                self._marks.clear()
            self._marks[end] = EndMark(end, self.vocabulary)
        if budget is None:
            return Compiled(ReasoningGrammar(self._marks[end], inner), relaxed)
        limited = ReasoningGrammar(
            self._marks[end], inner, max_tokens=budget.max_tokens, end_token_ids=budget.end_token_ids
        )
        return Compiled(limited, relaxed)

    def _prepare(self) -> None:
        """Start the process and read the vocabulary while it starts. A model without one has no constraints."""
        try:
            self._start_worker()
            self.vocabulary = Vocabulary.load(
                Path(self._setup.directory), size=self._setup.vocab_size, eos_token_ids=self._setup.eos_token_ids
            )
            self._tokenizer = make_tokenizer(self.vocabulary)
        except HeadraceError as error:
            logger.warning("constraints are not available: %s", error.message)
        except Exception:
            logger.exception("constraints are not available")

    def _result(self, constraint: Constraint) -> Result:
        if self.vocabulary is None or self._tokenizer is None:
            return RequestError(
                f"{constraint.param}: constraints are not available for this model", param=constraint.param
            )
        digest = hashlib.sha256(msgspec.msgpack.encode(constraint)).digest()
        known = self._cache.get(digest)
        if known is not None:
            return known
        answer = self._ask(constraint)
        size = len(constraint.source) + sum(len(schema.schema) for schema in constraint.schemas)
        result: Result
        if answer.error is not None:
            result = RequestError(answer.error, param=answer.error_param or constraint.param)
        elif answer.index:
            result, size = Compiled(load_index(answer.index, self.vocabulary.eos_token_ids)), len(answer.index)
        else:
            if self._index is None and (answer.names != "listed" or answer.items != "any"):
                self._index = TokenIndex(self.vocabulary)
            inner = compile_grammar(self._tokenizer, answer.grammar, constraint)
            grammar = unrepeated(inner, answer.names, answer.items, self._index, constraint.opens)
            result = Compiled(grammar, answer.relaxed)
            size = len(answer.grammar)
        self._cache.put(digest, result, ENTRY_BYTES + TEXT_FACTOR * size)
        return result

    def _ask(self, constraint: Constraint) -> Answer:
        """Have the process compile; kill it if it does not answer in its time."""
        job = Job(constraint, self._backend)
        answer = self._exchange(job) or self._exchange(job)  # it may have died of something else
        if (answer is None or answer.is_late) and constraint.may_relax:
            answer = self._exchange(Job(constraint, self._backend, rough=True))
        return answer or Answer(error=f"{constraint.param} is too complex: compiling it needs too much memory")

    def _exchange(self, job: Job) -> Answer | None:
        """The process's answer to a job, or that it took too long; None if it died. Then it is gone."""
        if self._worker is None:
            self._start_worker()
        worker = self._worker
        assert worker is not None and worker.stdin is not None and worker.stdout is not None
        try:
            write_message(worker.stdin, job)
        except OSError:
            self._kill()
            return None
        began, used, slow = self._clock(), cpu_seconds(worker.pid), False
        while not select.select([worker.stdout], [], [], SLOW_SECONDS)[0]:
            spent = cpu_seconds(worker.pid) - used
            if spent >= self._deadline or self._clock() - began >= WAIT_FACTOR * self._deadline:
                self._kill()
                late = f"compiling it takes more than {self._deadline:g} seconds"
                return Answer(error=f"{job.constraint.param} is too complex: {late}", is_late=True)
            if spent >= SLOW_SECONDS and not slow:
                # From here on it yields to the model. Only a new process can be given its rank back.
                slow = True
                os.setpriority(os.PRIO_PROCESS, worker.pid, LOWEST_PRIORITY)
        answer = self._read(0)
        if slow or answer is None:
            self._kill()
        return answer

    def _start_worker(self) -> None:
        command = [sys.executable, "-m", "engine.grammar.worker"]
        self._worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=-1)
        assert self._worker.stdin is not None
        try:
            write_message(self._worker.stdin, self._setup)
        except OSError:
            logger.warning("the process that compiles constraints has not started")
        answer = self._read(START_SECONDS)
        if answer is None or answer.error is not None:
            logger.warning("the process that compiles constraints has not started")

    def _read(self, seconds: float) -> Answer | None:
        """The process's answer, None if it has not begun within `seconds` or the process ended."""
        worker = self._worker
        assert worker is not None and worker.stdout is not None
        ready, _, _ = select.select([worker.stdout], [], [], seconds)
        frame = read_frame(worker.stdout) if ready else None
        return None if frame is None else msgspec.msgpack.decode(frame, type=Answer)

    def _kill(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
            worker.communicate()


def cpu_seconds(pid: int) -> float:
    """What a process has had of the processors; 0 if it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
