"""What answers may take of a key's tokens, for any request."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from engine.sampling_params import SamplingParams
from server.prompt.allowance import expected_tokens, least_tokens, within
from server.prompt.plan import PromptPlan

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=4)


def plans_of(
    lengths: list[int], n: int, min_tokens: int, *, context: int = 1000, says_limit: bool = False
) -> list[PromptPlan]:
    return [
        PromptPlan(
            prompt_token_ids=[1] * length,
            params=SamplingParams(max_tokens=context - length, min_tokens=min_tokens),
            n=n,
            stop=(),
            include_stop=False,
            skip_special_tokens=True,
            hidden_ids=frozenset(),
            continues=True,
            stream=False,
            include_usage=False,
            continuous_usage=False,
            system_fingerprint="",
            least_answer_tokens=context - length if says_limit else max(1, min_tokens),
            says_limit=says_limit,
        )
        for length in lengths
    ]


def most_tokens(plans: list[PromptPlan]) -> int:
    return sum(len(plan.prompt_token_ids) + plan.n * plan.params.max_tokens for plan in plans)


@given(LENGTHS, st.integers(1, 16), st.integers(0, 60), st.integers(0, 30_000))
def test_what_the_limit_allows_at_all_fits_into_it(lengths: list[int], n: int, min_tokens: int, more: int) -> None:
    plans = plans_of(lengths, n, min_tokens)
    least = least_tokens(plans)
    assert least <= expected_tokens(plans) <= most_tokens(plans)
    cut = within(plans, least + more)
    assert most_tokens(cut) <= least + more
    for plan, before in zip(cut, plans, strict=True):
        plan.params.check(100)
        assert 1 <= plan.params.max_tokens <= before.params.max_tokens
        assert dataclasses.replace(plan, params=before.params) == before
        assert dataclasses.replace(plan.params, max_tokens=before.params.max_tokens) == before.params
        # No answer is cut for less than one token of each.
        is_cut = plan.params.max_tokens < before.params.max_tokens
        assert not is_cut or plan.params.max_tokens >= (least + more - sum(lengths)) // (n * len(plans))


def test_what_a_request_says_holds_and_without_a_limit_nothing_is_cut() -> None:
    said = plans_of([10, 20], 2, 0, says_limit=True)
    assert least_tokens(said) == expected_tokens(said) == most_tokens(said) and within(said, 5000) is said
    unsaid = plans_of([10, 20], 2, 0)
    assert within(unsaid, None) is unsaid and least_tokens(unsaid) == 34
    assert expected_tokens(unsaid) == 30 + 4 * 512
