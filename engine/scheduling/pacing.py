"""How many prompt tokens may ride along with decoding sequences, learned from how long steps take.

A step of decoding sequences takes some time D. One that computes a chunk of a prompt as well takes D + F + c·n: a fixed
cost F, of launching a step that is not recorded, and c for each of the n tokens, which grows with the context they
attend to. A fixed chunk is therefore too small at the start of a prompt and too large at its end. This one is chosen so
that a mixed step takes `SLOWDOWN` times D where F allows it, and where F alone is near that, a half more than D + F: a
smaller chunk would then slow the prompt down more than it spares the others.

F and c are told apart by a smaller chunk now and then, right behind a full one.
"""

from collections import deque
from statistics import median, median_low

SLOWDOWN = 2.0
LEAST_SHARE = 0.5
"""What a chunk's tokens may always cost, as a share of D + F: a prompt is then at most three times as slow as alone."""
SMALLEST_CHUNK = 8
"""Prompts always move on."""
LARGEST_RISE = 2.0
"""Of what a prompt's token costs, from one step to the next."""
REMEMBERED_STEPS = 32
PROBE_EVERY = 16
"""Mixed steps between two probes; while little is known, one follows the other."""
PROBE_SHARE = 4
"""A probe's smaller chunk is one of so many parts of the full one, if that is not too small."""
LEAST_RATIO = 2
"""Of a probe's two chunks."""
REMEMBERED_PROBES = 5


class PrefillPacer:
    """Turns observed step times into a chunk size between `smallest` and `largest`, both in tokens."""

    def __init__(self, largest: int, smallest: int = SMALLEST_CHUNK) -> None:
        self._largest, self._smallest = largest, min(smallest, largest)
        self._decode_seconds: deque[float] = deque(maxlen=REMEMBERED_STEPS)
        self._seconds_per_token = 0.0
        self._fixed: deque[float] = deque(maxlen=REMEMBERED_PROBES)
        """What probes found F to be."""
        self._full: tuple[int, float] | None = None
        """Tokens and extra seconds of the newest step, if it began a probe."""
        self._since_probe = PROBE_EVERY

    @property
    def budget(self) -> int:
        """Prompt tokens that the next step may hold beside decoding sequences."""
        if self._full is not None:
            return self._small
        return max(self._chunk, self._large) if self._is_due else self._chunk

    @property
    def decode_seconds(self) -> float:
        """D, or 0 as long as it is not known."""
        return median(self._decode_seconds) if self._decode_seconds else 0.0

    @property
    def fixed_seconds(self) -> float:
        """F, as far as it is known: of two findings the lower, since what holds a step up makes it seem more."""
        return median_low(self._fixed) if self._fixed else 0.0

    def observe(self, seconds: float, *, num_decodes: int, num_prefill_tokens: int) -> None:
        """Learn from one step. Steps without decoding sequences say nothing here."""
        if not num_decodes:
            return
        if not num_prefill_tokens:
            self._decode_seconds.append(seconds)
            return
        if not self._decode_seconds:
            return
        extra = max(seconds - median(self._decode_seconds), 0.0)
        full, small, due, wanted = self._full, self._small, self._is_due, self.budget
        self._full = None
        self._since_probe += 1
        # A step need not have just what was asked for: it is cut to sizes that cost less, or the prompts are short.
        if full is not None and small <= 2 * num_prefill_tokens and 1.5 * num_prefill_tokens <= full[0]:
            self._tell_apart(full, (num_prefill_tokens, extra))
        elif due and full is None and wanted <= 2 * num_prefill_tokens and wanted >= LEAST_RATIO * self._smallest:
            self._full = (num_prefill_tokens, extra)
        self._learn_cost(max(extra - self.fixed_seconds, 0.0) / num_prefill_tokens)

    @property
    def _chunk(self) -> int:
        """The size that costs what it may."""
        if not self._decode_seconds or self._seconds_per_token <= 0:
            return self._largest
        decode = median(self._decode_seconds)
        base = decode + self.fixed_seconds
        spare = max(SLOWDOWN * decode - base, LEAST_SHARE * base)
        return max(self._smallest, min(self._largest, int(spare / self._seconds_per_token)))

    @property
    def _large(self) -> int:
        """The smallest chunk that a probe can begin with."""
        return min(self._largest, LEAST_RATIO * self._smallest)

    @property
    def _small(self) -> int:
        """The chunk that a probe ends with."""
        full = self._chunk if self._full is None else self._full[0]
        return max(self._smallest, min(self._chunk // PROBE_SHARE, full // LEAST_RATIO))

    @property
    def _is_due(self) -> bool:
        return len(self._fixed) < REMEMBERED_PROBES or self._since_probe >= PROBE_EVERY

    def _tell_apart(self, full: tuple[int, float], small: tuple[int, float]) -> None:
        """Learn F from two steps: the tokens they differ by cost what their seconds differ by."""
        slope = max((full[1] - small[1]) / (full[0] - small[0]), 0.0)
        self._fixed.append(max(small[1] - slope * small[0], 0.0))
        self._since_probe = 0

    def _learn_cost(self, cost: float) -> None:
        """Believe a higher cost of a token at once, since it rises with the context, and a lower one by and by.

        A single step that something held up must not be believed whole.
        """
        old = self._seconds_per_token or cost
        self._seconds_per_token = min(cost, LARGEST_RISE * old) if cost > old else 0.8 * old + 0.2 * cost
