"""A prompt as it is shown before its answers."""

import dataclasses

from server.answer.detokenizer import Detokenizer
from server.prompt.plan import Echo, PromptPlan, ShownPrompt
from server.prompt.tokenizer import ChatTokenizer


def with_shown_prompt(plan: PromptPlan, tokenizer: ChatTokenizer) -> PromptPlan:
    """The plan with its prompt as it came, or decoded, if it is to be echoed."""
    if plan.echo is None:
        return plan
    return dataclasses.replace(plan, shown=_shown(plan.prompt_token_ids, plan.echo, tokenizer))


def _shown(ids: list[int], echo: Echo, tokenizer: ChatTokenizer) -> ShownPrompt:
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)
    pieces: list[str] = []
    offsets: list[int] = []
    length = 0
    for token_id, is_added in zip(ids, echo.added, strict=True):
        offsets.append(length)
        piece = "" if is_added else detokenizer.push((token_id,))
        pieces.append(piece)
        length += len(piece)
    if echo.text is None:
        return ShownPrompt("".join(pieces) + detokenizer.finish(), offsets)
    # A tokenizer that normalises text may hold another length than was sent.
    return ShownPrompt(echo.text, [min(offset, len(echo.text)) for offset in offsets])
