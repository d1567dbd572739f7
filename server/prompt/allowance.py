"""What the answers of a request may take of its key's tokens, by its plans.

A request that does not say how long its answers may be could fill the context with each of them, which may be far more
than its key has a minute. It is let in all the same, since most answers end long before that, and its answers are held
to what a whole minute's tokens leave.
"""

import dataclasses
from collections.abc import Sequence

from server.prompt.plan import PromptPlan

UNSAID_ANSWER_TOKENS = 512
"""What an answer is expected to take of its key's tokens where the request does not say how long it may be."""


def least_tokens(plans: Sequence[PromptPlan]) -> int:
    """What the limit of a key must allow: the prompts, and answers as long as the request says that they may be.

    Where it does not say, they are as short as they can be.
    """
    return _prompt_tokens(plans) + sum(plan.n * plan.least_answer_tokens for plan in plans)


def expected_tokens(plans: Sequence[PromptPlan]) -> int:
    """The same, with a guess where the request does not say."""
    return _prompt_tokens(plans) + sum(plan.n * _guess_of_answer(plan) for plan in plans)


def within(plans: list[PromptPlan], limit: int | None) -> list[PromptPlan]:
    """The plans of a request whose prompts and answers together take at most `limit` tokens; None is no limit.

    Answers whose length is not said share what the prompts leave, each alike. The limit is at least `least_tokens`.
    """
    if limit is None or plans[0].says_limit:
        return plans
    share = (limit - _prompt_tokens(plans)) // sum(plan.n for plan in plans)
    return [_shortened(plan, share) for plan in plans]


def _shortened(plan: PromptPlan, most: int) -> PromptPlan:
    if plan.params.max_tokens <= most:
        return plan
    return dataclasses.replace(plan, params=dataclasses.replace(plan.params, max_tokens=most))


def _prompt_tokens(plans: Sequence[PromptPlan]) -> int:
    return sum(len(plan.prompt_token_ids) for plan in plans)


def _guess_of_answer(plan: PromptPlan) -> int:
    guess = 0 if plan.says_limit else min(plan.params.max_tokens, UNSAID_ANSWER_TOKENS)
    return max(guess, plan.least_answer_tokens)
