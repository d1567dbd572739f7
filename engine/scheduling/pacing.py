"""How many prompt tokens may ride along with decoding sequences, learned from how long steps take.

A long prompt beside decoding sequences lengthens their steps by what its chunk costs, and that cost grows with the
context the chunk attends to. A fixed chunk is therefore too small at the start of a prompt and too large at its end;
this one is chosen so that a mixed step takes at most `SLOWDOWN` times a step of the decoding sequences alone.
"""

from collections import deque
from statistics import median

SLOWDOWN = 2.0
SMALLEST_CHUNK = 8
"""Prompts always move on."""
LARGEST_RISE = 2.0
"""Of what a prompt's token costs, from one step to the next."""
REMEMBERED_STEPS = 32


class PrefillPacer:
    """Turns observed step times into a chunk size between `SMALLEST_CHUNK` and `largest`."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._decode_seconds: deque[float] = deque(maxlen=REMEMBERED_STEPS)
        self._seconds_per_token = 0.0

    @property
    def budget(self) -> int:
        """Prompt tokens that the next step may hold beside decoding sequences."""
        if not self._decode_seconds or self._seconds_per_token <= 0:
            return self._largest
        spare = (SLOWDOWN - 1) * median(self._decode_seconds)
        return max(min(SMALLEST_CHUNK, self._largest), min(self._largest, int(spare / self._seconds_per_token)))

    def observe(self, seconds: float, *, num_decodes: int, num_prefill_tokens: int) -> None:
        """Learn from one step. Steps without decoding sequences say nothing here."""
        if not num_decodes:
            return
        if not num_prefill_tokens:
            self._decode_seconds.append(seconds)
            return
        if not self._decode_seconds:
            return
        cost = max(seconds - median(self._decode_seconds), 0.0) / num_prefill_tokens
        # Costs rise with the context, so a higher one is believed at once and a lower one by and by. A single step that
        # something held up must not be believed whole.
        old = self._seconds_per_token or cost
        self._seconds_per_token = min(cost, LARGEST_RISE * old) if cost > old else 0.8 * old + 0.2 * cost
