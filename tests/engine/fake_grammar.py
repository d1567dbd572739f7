"""Constraints for the fake model: which of its tokens may come at a place is a hash of the constraint and the place."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from engine.constraint import Constraint, ReasoningBudget
from engine.grammar.grammar import Compiled

if TYPE_CHECKING:  # the compiler itself needs libraries that kernels are tried without
    from engine.grammar.compiler import Result

WORDS = (0, 1, 2)


def allowed_tokens(source: str, place: int) -> list[int]:
    """One, two or three of the tokens that end nothing."""
    byte = hashlib.blake2b(f"{source}.{place}".encode(), digest_size=1).digest()[0]
    return [token for token in WORDS if byte >> token & 1] or [byte % 3]


def text_length(source: str) -> int:
    """After how many tokens a constrained text is complete."""
    return 4 + 3 * int(source)


class FakeGrammar:
    """See `engine.grammar.grammar.Grammar`."""

    def __init__(self, source: str, place: int = 0) -> None:
        self._source = source
        self._place = place

    def copy(self) -> "FakeGrammar":
        return FakeGrammar(self._source, self._place)

    def fill_bitmask(self, row: np.ndarray) -> bool:
        row[:] = sum(1 << token for token in allowed_tokens(self._source, self._place))
        return True

    def forced_tokens(self) -> list[int]:
        forced: list[int] = []
        while self._place + len(forced) < text_length(self._source):
            tokens = allowed_tokens(self._source, self._place + len(forced))
            if len(tokens) > 1:
                break
            forced += tokens
        return forced

    def accept(self, token_id: int) -> None:
        assert token_id in allowed_tokens(self._source, self._place), "a token that was not allowed"
        self._place += 1

    @property
    def can_end(self) -> bool:
        return self.is_finished

    @property
    def is_finished(self) -> bool:
        return self._place >= text_length(self._source)


class FakeCompiler:
    """Serves as `engine.grammar.compiler.GrammarCompiler`; has every result at once."""

    def __init__(self) -> None:
        self._done: list[tuple[int, Result]] = []

    def submit(
        self, key: int, constraint: Constraint | None, budget: ReasoningBudget | None = None, *, tenant: bytes = b""
    ) -> None:
        assert constraint is not None
        self._done.append((key, Compiled(FakeGrammar(constraint.source))))

    def cancel(self, key: int) -> None:
        self._done = [entry for entry in self._done if entry[0] != key]

    def collect(self) -> "list[tuple[int, Result]]":
        done, self._done = self._done, []
        return done
