"""Which tokens constrained rows may draw: filled on the host while the forward pass runs, applied in one operation."""

from dataclasses import dataclass

import numpy as np
import torch

from engine.grammar.grammar import GrammarError
from engine.scheduling.sequence import Sequence

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_ADDED = np.where(_BITS, np.float32(0), np.float32(-np.inf)).astype(np.float32)
"""float32 [256, 8]: what a byte of a bitmask adds to the logits of its eight tokens. Looking this up and adding it
takes half of what torch needs on a CPU to select by booleans."""


@dataclass(frozen=True, slots=True)
class Filled:
    """The rows of one step's bitmask."""

    rows: list[int]
    """Rows of the logits, in rising order."""
    words: np.ndarray
    """int32 `[len(rows), ceil(V/32)]`: bit i%32 of word i//32 is token i."""
    failures: dict[int, str]
    """Rows whose constraint cannot go on, and why; such a row's token means nothing."""


class BitmaskBuilder:
    """Fills rows of one host buffer, one for each slot that a step can have."""

    def __init__(self, *, max_num_seqs: int, vocab_size: int) -> None:
        self._words = np.zeros((max_num_seqs, -(-vocab_size // 32)), dtype=np.int32)

    def fill(self, sequences: list[Sequence]) -> Filled:
        """Ask the grammar of each constrained sequence; a failure is that sequence's own.

        A stop token of the request may come where the text could end.
        """
        rows: list[int] = []
        failures: dict[int, str] = {}
        for row, sequence in enumerate(sequences):
            grammar = sequence.grammar
            if grammar is None:
                continue
            words = self._words[len(rows)]
            try:
                if not grammar.fill_bitmask(words):
                    continue
                if sequence.params.stop_token_ids and grammar.can_end:
                    for token_id in sequence.params.stop_token_ids:
                        words.view(np.uint32)[token_id // 32] |= np.uint32(1 << (token_id % 32))
                if not words.any():
                    raise GrammarError("the constraint allows no further token")
            except GrammarError as error:
                failures[row] = str(error)
                continue
            except Exception as error:
                failures[row] = f"internal error in the constraint: {type(error).__name__}"
                continue
            rows.append(row)
        return Filled(rows, self._words[: len(rows)], failures)


def apply_bitmask(logits: torch.Tensor, filled: Filled) -> torch.Tensor:
    """The logits `[R, V]`, on a CPU, with what `filled` does not allow at minus infinity; as they are without rows."""
    if not filled.rows:
        return logits
    vocab = logits.shape[1]
    added = torch.from_numpy(_ADDED[filled.words.view(np.uint8)].reshape(len(filled.rows), -1))[:, :vocab]
    if len(filled.rows) == len(logits):
        return logits + added
    index = torch.tensor(filled.rows)
    return logits.index_copy(0, index, logits[index] + added)
