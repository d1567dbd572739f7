"""What one request asks of the sampler and the stop rules: a frozen value, checked once."""

import math
from dataclasses import dataclass, field

from engine.constraint import Constraint, ReasoningBudget
from engine.errors import RequestError

MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_STOP_TOKEN_IDS = 64
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """Sampling and stopping of one sequence.

    Penalties follow OpenAI's formula over generated tokens; `repetition_penalty` is the multiplicative one of
    CTRL (arXiv 1909.05858) over prompt and generated tokens. Filters apply in the order top_k, top_p, min_p, all to
    the distribution after temperature. `logprobs` asks for the log-probability of each sampled token and of that many
    alternatives, from the raw logits in fp32, before any of the above. `prompt_logprobs` asks for the same of the
    prompt's own tokens, the first excepted, which follows nothing.
    """

    max_tokens: int
    """Most tokens to generate; with 0 the prompt is computed and nothing follows it."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    """None draws a fresh seed for each sequence."""
    min_tokens: int = 0
    """No end-of-sequence or stop token before this many generated tokens."""
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None
    """What the text must match. Compiled before the request is queued; `RequestError` if it cannot be."""
    reasoning_budget: ReasoningBudget | None = None

    @property
    def needs_grammar(self) -> bool:
        """Whether not every token may come at every place."""
        return self.constraint is not None or self.reasoning_budget is not None

    def check(self, vocab_size: int) -> None:
        """Raise `RequestError` for the first field that is out of range.

        `vocab_size` is the width of the logits, which token ids are held against, never the tokenizer's length.
        """
        for name, low, high in _FLOAT_RANGES:
            _check_range(name, getattr(self, name), low, high)
        for name, low, high in _INT_RANGES:
            _check_range(name, getattr(self, name), low, high)
        if self.constraint is not None:
            self.constraint.check_size()
        if self.seed is not None:
            _check_range("seed", self.seed, -MAX_SEED - 1, MAX_SEED)
        if self.logprobs is not None:
            _check_range("top_logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.prompt_logprobs is not None:
            _check_range("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        if not self.top_p > 0:
            raise RequestError(f"top_p must be greater than 0, got {self.top_p}", param="top_p")
        if not self.repetition_penalty > 0:
            raise RequestError(
                f"repetition_penalty must be greater than 0, got {self.repetition_penalty}", param="repetition_penalty"
            )
        if self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})", param="min_tokens"
            )
        self._check_token_ids(vocab_size)

    def _check_token_ids(self, vocab_size: int) -> None:
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise RequestError(
                f"logit_bias has {len(self.logit_bias)} entries, at most {MAX_LOGIT_BIAS} are allowed",
                param="logit_bias",
            )
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise RequestError(
                f"stop_token_ids has {len(self.stop_token_ids)} entries, at most {MAX_STOP_TOKEN_IDS} are allowed",
                param="stop_token_ids",
            )
        ending = self.reasoning_budget.end_token_ids if self.reasoning_budget is not None else ()
        for name, ids in (
            ("logit_bias", self.logit_bias),
            ("stop_token_ids", self.stop_token_ids),
            ("reasoning_budget", ending),
        ):
            for token_id in ids:
                if not 0 <= token_id < vocab_size:
                    raise RequestError(
                        f"{name} names token {token_id}, outside this model's vocabulary of {vocab_size} tokens",
                        param=name,
                    )
        for bias in self.logit_bias.values():
            _check_range("logit_bias", bias, -100.0, 100.0)


_FLOAT_RANGES = (
    ("temperature", 0.0, 2.0),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("frequency_penalty", -2.0, 2.0),
    ("presence_penalty", -2.0, 2.0),
    ("repetition_penalty", 0.0, 10.0),
)
_INT_RANGES = (("max_tokens", 0, 2**31 - 1), ("min_tokens", 0, 2**31 - 1), ("top_k", 0, 2**31 - 1))


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not math.isfinite(value) or not low <= value <= high:
        raise RequestError(f"{name} must be between {low} and {high}, got {value}", param=name)
