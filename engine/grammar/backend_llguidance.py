"""Grammars of the llguidance library: JSON Schema, regular expressions and context-free grammars.

Compiled in about a millisecond, masks in some ten microseconds; its limits, in units of work, bound what one step of a
hostile grammar can cost.
"""

import re

import llguidance
import numpy as np

from engine.constraint import Constraint
from engine.errors import RequestError
from engine.grammar.grammar import GrammarError
from engine.grammar.vocabulary import LlguidanceVocabulary, Vocabulary

MAX_MESSAGE_CHARS = 300
_TOO_MUCH = re.compile("too many|items; max is")
_DUMP = re.compile("<(?:state|non-verbose)")
_OUR_PLACE = re.compile(r"^at \d+\(\d+\): ")
_WRONG_PATTERN = re.compile(r"^error: (.*)$|\(in regex\): (.*?)(?: in regex /.*)?$", re.MULTILINE)
STEP_FUEL = 200_000


def _limits(step_fuel: int) -> llguidance.LLParserLimits:
    return llguidance.LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=step_fuel,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=500_000,
        verbose_errors=False,
    )


LIMITS = _limits(STEP_FUEL)
"""Per grammar; the library's documentation gives 14,000 units of `step_lexer_fuel` as a millisecond, and 1 to 2 kB as
the size of a lexer state."""
TRIAL_LIMITS = _limits(STEP_FUEL * 17 // 20)
"""For a part that is tried alone: what a step costs varies a little from one compiled grammar to the next."""

SLICES = [part.replace(r"\x7F", r"\x7F\u{2028}\u{2029}") for part in llguidance.LLTokenizer.general_slices()]
"""Texts whose tokens a mask takes all at once where the grammar allows all such texts: the library's own, without the
two ends of a line that ECMA-262's `.` leaves out too."""


def make_tokenizer(vocabulary: Vocabulary) -> llguidance.LLTokenizer:
    """The library's form of a vocabulary; takes about half a second for 150,000 tokens."""
    eos = list(vocabulary.eos_token_ids) or [vocabulary.size - 1]
    return llguidance.LLTokenizer(LlguidanceVocabulary(vocabulary), eos_token=eos, slices=SLICES)


class LlguidanceGrammar:
    """One matcher of the library."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    def copy(self) -> "LlguidanceGrammar":
        """An independent state at the same place; what the lexer has learnt is shared."""
        return LlguidanceGrammar(self._matcher.deep_copy())

    def fill_bitmask(self, row: np.ndarray) -> bool:
        """See `Grammar`."""
        self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        if self._matcher.is_error():
            raise GrammarError(self._why())
        return True

    def forced_tokens(self) -> list[int]:
        """See `Grammar`. Where bytes are forced the library's masks allow their usual tokens alone."""
        return [] if self._matcher.is_stopped() else list(self._matcher.compute_ff_tokens())

    def accept(self, token_id: int) -> None:
        """See `Grammar`."""
        if not self._matcher.consume_token(token_id):
            raise GrammarError(self._why())

    def allows(self, token_ids: list[int]) -> bool:
        """Whether these tokens may come, one after the other."""
        return bool(self._matcher.validate_tokens(token_ids) == len(token_ids))

    @property
    def can_end(self) -> bool:
        """See `Grammar`."""
        return bool(self._matcher.is_accepting())

    @property
    def is_finished(self) -> bool:
        """See `Grammar`."""
        return bool(self._matcher.is_stopped())

    def _why(self) -> str:
        reason = self._matcher.stop_reason()
        if reason in ("ParserTooComplex", "LexerTooComplex") or _TOO_MUCH.search(self._matcher.get_error()):
            return "the constraint became too complex to be followed"
        return "the constraint allows no further token"


def compile_grammar(
    tokenizer: llguidance.LLTokenizer, grammar: str, constraint: Constraint, *, is_trial: bool = False
) -> LlguidanceGrammar:
    """Compile what `grammar_text` made. Raises `RequestError` with the library's words."""
    limits = TRIAL_LIMITS if is_trial else LIMITS
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if matcher.is_error():
        short = short_error if constraint.kind == "lark" else expression_error
        raise RequestError(f"{constraint.param}: {short(matcher.get_error())}", param=constraint.param)
    return LlguidanceGrammar(matcher)


def short_error(message: str) -> str:
    """The library's message on one line, without its arrows and its dump of the state."""
    lines = [line.strip() for line in _DUMP.split(message)[0].splitlines()]
    said = " ".join(line for line in lines if line.strip("^ "))
    return said[:MAX_MESSAGE_CHARS] or "it cannot be compiled"


def expression_error(message: str) -> str:
    """The library's message without the rules that a schema or an expression was written in, which only we know."""
    found = _WRONG_PATTERN.findall(message)
    if found:
        return f"invalid regex: {next(filter(None, reversed([one or two for one, two in found])), '')}"[
            :MAX_MESSAGE_CHARS
        ]
    return short_error(_OUR_PLACE.sub("", message.splitlines()[0] if message else ""))
