"""Compiles constraints beside the step loop, in processes that are killed when they take too long.

One thread takes any job. Once a job has turned out to take long, a second, with a process of its own, takes those that
seem cheap, so that nobody's small schema waits for somebody's large one; it ends when there is nothing to do. What has
compiled, or was refused, is remembered within a bound in bytes, so a repeated constraint costs a lookup and a repeated
attack one more.
"""

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

import llguidance
import msgspec

from engine.config import ConstraintBackend
from engine.constraint import Constraint, ReasoningBudget, Relaxed
from engine.errors import HeadraceError, RequestError
from engine.grammar.backend_llguidance import compile_grammar, make_tokenizer
from engine.grammar.backend_outlines import load_index
from engine.grammar.grammar import Compiled, Grammar
from engine.grammar.jobs import JobQueue, Queued
from engine.grammar.reasoning import EndMark, ReasoningGrammar
from engine.grammar.repeats import unrepeated
from engine.grammar.results import GrammarCache, Result
from engine.grammar.token_index import TokenIndex
from engine.grammar.vocabulary import Vocabulary
from engine.grammar.worker import Setup
from engine.grammar.worker_process import WorkerProcess

logger = logging.getLogger(__name__)

MAX_CACHE_BYTES = 256 * 1024 * 1024
ENTRY_BYTES = 256 * 1024
"""What a compiled grammar holds beside its text: parser and lexer tables that grow with use."""
TEXT_FACTOR = 16
MAX_MARKS = 16
DEADLINE_SECONDS: dict[ConstraintBackend, float] = {"llguidance": 2.0, "outlines_core": 10.0}
"""Of the process's own time, so that a busy machine refuses nobody."""
LOOK_SECONDS = 5.0
"""So often an idle process is looked after, which something else may have ended."""
IDLE_SECONDS = 300.0
"""After this the second process ends."""


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
        setup = Setup(str(directory), vocab_size, sorted(eos_token_ids))
        self._setup = setup
        limit = DEADLINE_SECONDS[backend] if deadline is None else deadline
        self.process = WorkerProcess(setup, backend, limit, clock, on_slow=self._open_second_way)
        self.second_process = WorkerProcess(setup, backend, limit, clock)
        """For what is cheap, beside a job that takes long."""
        self._on_done = on_done
        self._jobs = JobQueue()
        self._done: queue.SimpleQueue[tuple[int, Result]] = queue.SimpleQueue()
        self._pending: set[int] = set()
        self._cache = GrammarCache(MAX_CACHE_BYTES)
        self._marks: dict[str, EndMark] = {}
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._index: TokenIndex | None = None
        self._lock = threading.Lock()
        """Of what is remembered."""
        self._thread: threading.Thread | None = None
        self._second_thread: threading.Thread | None = None

    def start(self) -> None:
        """Read the vocabulary and start the compiling process, in the background; once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="grammar compiler", daemon=True)
            self._thread.start()

    def submit(
        self, key: int, constraint: Constraint | None, budget: ReasoningBudget | None = None, *, tenant: bytes = b""
    ) -> None:
        """Ask for the grammar of a constraint, or a budget, or both; it comes under `key`.

        Raises `RequestError` where too many are waiting, in all or of one tenant.
        """
        self.start()
        self._jobs.put(key, constraint, budget, tenant)
        self._pending.add(key)

    def cancel(self, key: int) -> None:
        """Let the result of a job be dropped; unknown keys are ignored."""
        self._pending.discard(key)
        self._jobs.drop(key)

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
        """End the processes and the threads, which may be at work."""
        self._jobs.close()
        for thread in (self._thread, self._second_thread):
            if thread is not None:
                thread.join()

    def _run(self) -> None:
        self._prepare()
        while not self._jobs.is_closed:
            if (job := self._jobs.take(timeout=LOOK_SECONDS)) is None:
                self.process.revive()
            else:
                self._do(job, self.process)
                self.process.start()  # while nobody waits for it
        self.process.kill()

    def _open_second_way(self) -> None:
        if self._second_thread is None or not self._second_thread.is_alive():
            name = "second grammar compiler"
            self._second_thread = threading.Thread(target=self._run_cheap, name=name, daemon=True)
            self._second_thread.start()

    def _run_cheap(self) -> None:
        self.second_process.start()
        while (job := self._jobs.take(cheap=True, timeout=IDLE_SECONDS)) is not None:
            self._do(job, self.second_process)
            self.second_process.start()
        self.second_process.kill()

    def _do(self, job: Queued, process: WorkerProcess) -> None:
        try:
            result = self._grammar(job.constraint, job.budget, process)
        except Exception:
            logger.exception("a constraint could not be compiled")
            result = RequestError("internal error while compiling the constraint")
        self._done.put((job.key, result))
        self._on_done()

    def _grammar(self, constraint: Constraint | None, budget: ReasoningBudget | None, process: WorkerProcess) -> Result:
        """A grammar of the request's own: the constraint's, behind the reasoning that comes before it."""
        inner: Grammar | None = None
        relaxed: Relaxed | None = None
        if constraint is not None:
            result = self._result(constraint, process)
            if isinstance(result, RequestError):
                return result
            inner, relaxed = result.grammar.copy(), result.relaxed
        end = budget.end if budget is not None else constraint.after if constraint is not None else ""
        if not end:
            assert inner is not None
            return Compiled(inner, relaxed)
        if self.vocabulary is None:
            return RequestError("a reasoning budget is not available for this model", param="max_reasoning_tokens")
        with self._lock:
            if end not in self._marks:
                if len(self._marks) >= MAX_MARKS:
                    self._marks.clear()
                self._marks[end] = EndMark(end, self.vocabulary)
            mark = self._marks[end]
        if budget is None:
            return Compiled(ReasoningGrammar(mark, inner), relaxed)
        limited = ReasoningGrammar(mark, inner, max_tokens=budget.max_tokens, end_token_ids=budget.end_token_ids)
        return Compiled(limited, relaxed)

    def _prepare(self) -> None:
        """Start the process and read the vocabulary while it starts. A model without one has no constraints."""
        try:
            self.process.start()
            self.vocabulary = Vocabulary.load(
                Path(self._setup.directory), size=self._setup.vocab_size, eos_token_ids=self._setup.eos_token_ids
            )
            self._tokenizer = make_tokenizer(self.vocabulary)
        except HeadraceError as error:
            logger.warning("constraints are not available: %s", error.message)
        except Exception:
            logger.exception("constraints are not available")

    def _result(self, constraint: Constraint, process: WorkerProcess) -> Result:
        if self.vocabulary is None or self._tokenizer is None:
            return RequestError(
                f"{constraint.param}: constraints are not available for this model", param=constraint.param
            )
        digest = hashlib.sha256(msgspec.msgpack.encode(constraint)).digest()
        with self._lock:
            known = self._cache.get(digest)
        if known is not None:
            return known
        answer = process.ask(constraint)
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
        with self._lock:
            self._cache.put(digest, result, ENTRY_BYTES + TEXT_FACTOR * size)
        return result
