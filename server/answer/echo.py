"""A prompt as it is shown before its answers."""

from dataclasses import dataclass

from server.answer.detokenizer import Detokenizer
from server.prompt.plan import PromptPlan
from server.prompt.tokenizer import ChatTokenizer


@dataclass(frozen=True, slots=True)
class ShownPrompt:
    """The text of a prompt, and where in it each of its tokens begins, in characters."""

    text: str
    offsets: list[int]

    @classmethod
    def of_plan(cls, plan: PromptPlan, tokenizer: ChatTokenizer) -> "ShownPrompt | None":
        """The prompt of a plan as it came, or decoded; None if it is not to be echoed."""
        echo = plan.echo
        if echo is None:
            return None
        detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)
        pieces: list[str] = []
        offsets: list[int] = []
        length = 0
        for token_id, is_added in zip(plan.prompt_token_ids, echo.added, strict=True):
            offsets.append(length)
            piece = "" if is_added else detokenizer.push((token_id,))
            pieces.append(piece)
            length += len(piece)
        if echo.text is None:
            return cls("".join(pieces) + detokenizer.finish(), offsets)
        # A tokenizer that normalises text may hold another length than was sent.
        return cls(echo.text, [min(offset, len(echo.text)) for offset in offsets])
