"""What one constraint costs by itself: compiling, the first mask, and those of a text that follows it."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.constraint import Constraint
from engine.grammar.backend_llguidance import compile_grammar, make_tokenizer
from engine.grammar.grammar import Grammar
from engine.grammar.repeats import unrepeated
from engine.grammar.source import grammar_text
from engine.grammar.token_index import TokenIndex
from engine.grammar.vocabulary import Vocabulary
from server.benchmarks.constraints import Case
from server.benchmarks.record import percentile

COMPILES = 5


class Alone:
    """Constraints one after another, on a model's own vocabulary."""

    def __init__(self, directory: Path, *, size: int, eos_token_ids: Sequence[int]) -> None:
        """`size` is the width of the logits. Raises `ModelLoadError` where the model has no tokenizer."""
        self._vocabulary = Vocabulary.load(directory, size=size, eos_token_ids=eos_token_ids)
        self._tokenizer = make_tokenizer(self._vocabulary)
        self._index = TokenIndex(self._vocabulary)
        self._row = np.zeros(-(-self._vocabulary.size // 32), dtype=np.int32)

    def measure(self, case: Case) -> dict[str, Any]:
        """Milliseconds of compiling and of the first mask, microseconds of the masks of its text."""
        constraint = Constraint(kind=case.kind, source=case.source, param="response_format")
        times, firsts = [], []
        for _ in range(COMPILES):
            began = time.thread_time()
            grammar = self._compiled(constraint)
            compiled = time.thread_time()
            grammar.fill_bitmask(self._row)
            firsts.append(1e3 * (time.thread_time() - compiled))
            times.append(1e3 * (compiled - began))
        masks = self._masks(grammar, case.text)
        return {"name": case.name, "compile_ms": statistics.median(times), "first_mask_ms": statistics.median(firsts),
                "tokens": len(masks), "mask_us": {f"p{p}": percentile(masks, p) for p in (50, 99)}}  # fmt: skip

    def _compiled(self, constraint: Constraint) -> Grammar:
        made_of = grammar_text(constraint)
        inner = compile_grammar(self._tokenizer, made_of.text, constraint)
        return unrepeated(inner, made_of.names, made_of.items, self._index, "")

    def _masks(self, grammar: Grammar, text: str) -> list[float]:
        times = []
        for token_id in self._vocabulary.spelled(text.encode()):
            began = time.thread_time()
            grammar.fill_bitmask(self._row)
            times.append(1e6 * (time.thread_time() - began))
            grammar.accept(token_id)
        return times
