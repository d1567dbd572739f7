"""What a compiled constraint is to the engine: a state per sequence that says which tokens may come next."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from engine.constraint import Relaxed


class GrammarError(Exception):
    """A constraint that cannot go on: no token is allowed, or its next step would cost too much."""


class Grammar(Protocol):
    """The state of one constraint in one sequence. One that is kept for later uses is copied, never advanced."""

    def copy(self) -> "Grammar":
        """An independent state at the same place."""

    def fill_bitmask(self, row: np.ndarray) -> bool:
        """Write the allowed tokens into int32 `[ceil(V/32)]`, bit i%32 of word i//32 for token i.

        False if every token is allowed; the row's content means nothing then. Raises `GrammarError`.
        """

    def forced_tokens(self) -> list[int]:
        """Tokens that must come next, one after the other: each the only one its bitmask would allow. Maybe none.

        They are still to be accepted.
        """

    def accept(self, token_id: int) -> None:
        """Move on by one token that was allowed. Raises `GrammarError`."""

    @property
    def can_end(self) -> bool:
        """Whether the text so far satisfies the constraint as it is."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing but the end can follow."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a constraint has become."""

    grammar: Grammar
    relaxed: Relaxed | None = None
    """What it does not hold answers to, though it was asked for."""
