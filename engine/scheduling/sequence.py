"""The host's state of one running request: its tokens, how far they are computed, which blocks hold them."""

import enum

from engine.grammar.grammar import Grammar
from engine.sampling_params import SamplingParams
from engine.scheduling.images import Placement, PromptImage

NOT_STARTED = 2**62
"""`Sequence.start` of those that have not begun to run."""


class Status(enum.Enum):
    """Where a sequence stands. Preempted sequences are `WAITING` again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """One prompt being continued once.

    The scheduler lets `num_computed_tokens` catch up with `num_tokens`; when it has, the sequence samples and grows by
    one token. Prefill, decode, recomputation after preemption and prefix hits are all that one rule.
    """

    __slots__ = (
        "arrival",
        "arrived_at",
        "block_digests",
        "block_table",
        "eos_token_ids",
        "finish_reason",
        "grammar",
        "images",
        "index",
        "leader",
        "max_len",
        "num_cached_tokens",
        "num_charged_tokens",
        "num_computed_tokens",
        "num_preemptions",
        "num_prefilled_tokens",
        "num_prompt_tokens",
        "num_scored_tokens",
        "num_unread_tokens",
        "params",
        "placement",
        "priority",
        "queue_seconds",
        "request_id",
        "root_digest",
        "seed",
        "slot",
        "start",
        "status",
        "tenant",
        "token_ids",
        "weight",
    )

    def __init__(
        self,
        *,
        request_id: int,
        prompt_token_ids: list[int],
        params: SamplingParams,
        seed: int,
        max_len: int,
        eos_token_ids: frozenset[int] = frozenset(),
        index: int = 0,
        root_digest: bytes = b"",
        leader: "Sequence | None" = None,
        priority: int = 0,
        tenant: bytes = b"",
        weight: float = 1.0,
        grammar: Grammar | None = None,
        images: tuple[PromptImage, ...] = (),
        placement: Placement | None = None,
        arrived_at: float = 0.0,
    ) -> None:
        """`max_len` is the most tokens, prompt included, that the sequence may ever hold.

        `leader` is the first of `n` sequences of one request: the others wait until its prompt is computed, so that
        they find its blocks in the prefix cache. `grammar` is this sequence's own state of its constraint; it has read
        all generated tokens, also while the sequence waits to be recomputed. `tenant` is who asks, and `weight` that
        one's share where several wait. `images` stand in the prompt, in order;
        `placement` is the model's view of where its tokens are, None where that is their place in the text.
        """
        assert prompt_token_ids and max_len >= len(prompt_token_ids) + (params.max_tokens > 0)
        self.request_id = request_id
        self.index = index
        self.params = params
        self.seed = seed
        self.max_len = max_len
        self.eos_token_ids = eos_token_ids
        self.root_digest = root_digest
        self.leader = leader
        self.priority = priority
        self.tenant = tenant
        self.weight = weight
        self.grammar = grammar
        self.images = images
        self.placement = placement
        self.arrival = 0
        """Place in the order of arrival, given by the scheduler."""
        self.arrived_at = arrived_at
        """When its request came to the engine, by `time.perf_counter`."""
        self.queue_seconds: float | None = None
        """From then until the scheduler first gave it a place."""
        self.start = NOT_STARTED
        """Place in the order in which sequences began to run, given by the scheduler; it stays after a preemption."""
        self.num_charged_tokens = 0
        """Leading tokens that were counted as its tenant's; each is, once."""
        self.token_ids = list(prompt_token_ids)
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_computed_tokens = 0
        self.num_prefilled_tokens = 0
        """Prompt tokens computed or found in the prefix cache so far; recomputing after a preemption adds nothing."""
        self.num_cached_tokens = 0
        """Those of them that were found."""
        self.num_scored_tokens = 0
        """Leading prompt tokens whose successors' log-probabilities are out; only with `prompt_logprobs`."""
        self.num_unread_tokens = 0
        """0 or 1: a token that is sampled and stands on the device, but has not come back to the host."""
        self.num_preemptions = 0
        self.block_table: list[int] = []
        self.block_digests: list[bytes] = []
        """Chain digests of the leading full blocks, as far as they were needed."""
        self.slot = -1
        """Row of the per-sequence device state while running, else -1."""
        self.status = Status.WAITING
        self.finish_reason: str | None = None

    def __repr__(self) -> str:
        return (
            f"Sequence({self.request_id}.{self.index} {self.status.value} "
            f"{self.num_computed_tokens}/{self.num_tokens} slot={self.slot} blocks={self.block_table})"
        )

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens, an unread one included."""
        return len(self.token_ids) + self.num_unread_tokens

    @property
    def num_generated(self) -> int:
        """Generated tokens that are known."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def needs_compute(self) -> bool:
        """Whether there are tokens to compute: not those behind which, whatever they are, nothing can come."""
        if self.num_unread_tokens:
            is_last = self.num_generated + 1 >= self.params.max_tokens or self.num_tokens >= self.max_len
            return not is_last
        return self.num_computed_tokens < self.num_tokens

    @property
    def order(self) -> tuple[int, int, int]:
        """Who comes first: the lower priority, then the earlier start of those that have begun, then the arrival."""
        return self.priority, self.start, self.arrival

    @property
    def num_tokens_to_score(self) -> int:
        """Leading prompt tokens that are to be scored in all: each token but the last is followed by one."""
        return 0 if self.params.prompt_logprobs is None else self.num_prompt_tokens - 1

    @property
    def max_computed_tokens(self) -> int:
        """Most tokens that may ever be computed: the last one generated never is."""
        return max(self.max_len - 1, self.num_prompt_tokens)

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self.status is Status.FINISHED
