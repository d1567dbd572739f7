"""The process that compiles what may explode: `python -m engine.grammar.worker`, jobs on standard input.

A native compiler cannot be stopped from within, so it runs where it can be killed: this process has a limit on its
memory, and its parent, `engine.grammar.compiler`, a clock. A job's answer is what the engine needs to make the same
grammar itself: the text of a grammar that has been seen to compile, or an automaton.
"""

import gc
import resource
import sys
import time
from pathlib import Path

import llguidance
import msgspec
import numpy as np
import outlines_core

from engine.constraint import Constraint, Relaxed
from engine.errors import HeadraceError, RequestError
from engine.frames import read_frame, write_message
from engine.grammar.backend_llguidance import LlguidanceGrammar, make_tokenizer
from engine.grammar.backend_outlines import compile_index, make_vocabulary
from engine.grammar.fitting import Fitting
from engine.grammar.grammar import GrammarError
from engine.grammar.source import load_schema
from engine.grammar.vocabulary import Vocabulary
from engine.grammar.writing.nodes import ItemsTaken, NamesTaken
from engine.lifetime import die_with_parent, ending_unheard

MAX_ADDRESS_BYTES = 4 * 1024**3
MAX_PROBE_SECONDS = 0.25
"""The first masks of a grammar take longest; those of one that exceeds this would hold up everybody's steps."""
PROBE_TOKENS = 4


class Setup(msgspec.Struct, frozen=True):
    """The first message: which vocabulary."""

    directory: str
    vocab_size: int
    eos_token_ids: list[int]


class Job(msgspec.Struct, frozen=True):
    """One constraint to be compiled for one backend."""

    constraint: Constraint
    backend: str
    rough: bool = False
    """Follow of schemas that are not strict only the outermost type."""


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of a job: `grammar` for llguidance, `index` for outlines_core, or an error.

    `relaxed` is what the grammar leaves out of the constraint.
    """

    grammar: str = ""
    index: bytes = b""
    names: NamesTaken = "listed"
    """What objects' names are, if `grammar` is set."""
    items: ItemsTaken = "any"
    """Whether arrays' items have to differ, if `grammar` is set."""
    relaxed: Relaxed | None = None
    error: str | None = None
    error_param: str | None = None
    is_late: bool = False
    """It was not given in time."""


class Compilers:
    """The backends of this process, each set up at its first use."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._lengths = np.array([len(token or b"") for token in vocabulary.tokens])
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._outlines: outlines_core.Vocabulary | None = None

    def prepare(self) -> None:
        """Set up the backend that most constraints use."""
        if self._tokenizer is None:
            self._tokenizer = make_tokenizer(self._vocabulary)

    def compile(self, job: Job) -> Answer:
        """Compile one constraint, and see that its first step is affordable."""
        constraint = job.constraint
        try:
            if job.backend == "outlines_core":
                return Answer(index=self._index(constraint))
            return self._fitted(constraint, rough=job.rough)
        except RequestError as error:
            return Answer(error=error.message, error_param=error.param)
        except GrammarError as error:
            return Answer(error=f"{constraint.param} cannot be followed: {error}", error_param=constraint.param)
        except (RecursionError, MemoryError, ValueError, OverflowError):
            if constraint.may_relax and not job.rough:
                return self.compile(Job(constraint, job.backend, rough=True))
            return Answer(error=f"{constraint.param} is too complex", error_param=constraint.param)

    def _fitted(self, constraint: Constraint, *, rough: bool) -> Answer:
        self.prepare()
        assert self._tokenizer is not None
        fitting = Fitting(self._tokenizer, constraint, self._probe, rough=rough)
        grammar = fitting.grammar()
        return Answer(grammar=grammar.text, names=grammar.names, items=grammar.items, relaxed=fitting.relaxed())

    def _probe(self, compiled: LlguidanceGrammar) -> None:
        """Follow a grammar for some tokens, each the longest allowed. Raises `GrammarError` where that takes long."""
        row = np.zeros(-(-self._vocabulary.size // 32), dtype=np.int32)
        began = time.process_time()
        for _ in range(PROBE_TOKENS):
            compiled.fill_bitmask(row)
            if time.process_time() - began > MAX_PROBE_SECONDS:
                raise GrammarError("it is too complex")
            allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")[: self._vocabulary.size])
            token_id = int(allowed[self._lengths[allowed].argmax()]) if len(allowed) else -1
            if token_id < 0 or not self._lengths[token_id]:
                return
            compiled.accept(token_id)
            if compiled.is_finished:
                return

    def _index(self, constraint: Constraint) -> bytes:
        if self._outlines is None:
            self._outlines = make_vocabulary(self._vocabulary)
        is_schema = constraint.kind == "json_schema"
        schema = load_schema(constraint.source, constraint.param) if is_schema else None
        return compile_index(self._outlines, constraint, schema)


def main() -> int:
    """Entry point of the process."""
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_BYTES, MAX_ADDRESS_BYTES))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    frame = read_frame(source)
    if frame is None:
        return 1
    setup = msgspec.msgpack.decode(frame, type=Setup)
    try:
        vocabulary = Vocabulary.load(Path(setup.directory), size=setup.vocab_size, eos_token_ids=setup.eos_token_ids)
    except HeadraceError as error:
        write_message(sink, Answer(error=error.message))
        return 1
    compilers = Compilers(vocabulary)
    compilers.prepare()
    write_message(sink, Answer())
    # Garbage is collected between jobs, when nobody waits; what stays for good is not looked through for it.
    gc.freeze()
    gc.disable()
    with ending_unheard():
        while (frame := read_frame(source)) is not None:
            write_message(sink, compilers.compile(msgspec.msgpack.decode(frame, type=Job)))
            gc.collect()
    return 0


if __name__ == "__main__":
    sys.exit(main())
