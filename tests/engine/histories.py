"""What the random histories of the state machine are made of, and how the memory behind them is checked."""

from dataclasses import dataclass, field

from hypothesis import strategies as st

from engine.constraint import Constraint
from engine.messages import AddRequest
from engine.sampling_params import SamplingParams
from engine.scheduling.block_manager import chain_digest
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.sequence import Sequence
from tests.engine.fake_runner import STOP, FakeRunner

BASES = ([0, 1, 2, 2, 1, 0] * 4, [0, 1, 2, 2, 0, 0] * 4, [1] * 24)
"""Prompts begin like one of these, so that they share blocks."""
REQUESTS = st.builds(
    lambda base, kept, tail, n, salt, priority, max_tokens, min_tokens, **params: AddRequest(
        0,
        BASES[base][:kept] + tail,
        SamplingParams(max_tokens=max_tokens, min_tokens=min(min_tokens, max_tokens), **params),
        n=n,
        salt=salt,
        priority=priority,
    ),
    base=st.integers(0, len(BASES) - 1),
    kept=st.sampled_from([1, 2, 3, 5, 8, 12, 18, 24]),
    tail=st.lists(st.integers(0, 2), max_size=4),
    n=st.sampled_from([1, 1, 1, 2, 3]),
    salt=st.sampled_from([b"", b"", b"tenant"]),
    priority=st.sampled_from([0, 0, 0, 0, -1, 5]),
    max_tokens=st.sampled_from([14, 20, 9, 10**6, 6, 1, 0]),
    min_tokens=st.sampled_from([0, 0, 0, 1]),
    stop_token_ids=st.sampled_from([(), (STOP,)]),
    prompt_logprobs=st.sampled_from([None, None, 0]),
    constraint=st.sampled_from([None, None, *(Constraint(kind="regex", source=str(number)) for number in range(6))]),
    ignore_eos=st.sampled_from([True, True, False]),
)


@dataclass
class Expected:
    """One choice of a request, as the test sees it from outside."""

    sequence: Sequence
    prompt: list[int]
    params: SamplingParams
    max_len: int
    tokens: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    is_accepted: bool = False
    may_fail: bool = False


def check_contents(scheduler: Scheduler, runner: FakeRunner) -> None:
    """What can be hit is what the memory holds, under the digest of its whole chain."""
    blocks, size = scheduler.blocks, scheduler.blocks.block_size
    digests = {}
    for sequence in scheduler.running:
        for position, block in enumerate(sequence.block_table):
            if blocks._digests[block] is None:
                continue
            tokens = sequence.token_ids[position * size : (position + 1) * size]
            parent = digests.get(sequence.block_table[position - 1]) if position else sequence.root_digest
            if parent is not None:  # of a broken chain nothing can be hit
                digests[block] = chain_digest(parent, tokens)
                assert blocks._digests[block] == digests[block]
    for block in blocks._by_digest.values():
        cells = runner._tokens[block * size : (block + 1) * size]
        assert (tuple(cells.tolist()), ()) == blocks._contents[block]
