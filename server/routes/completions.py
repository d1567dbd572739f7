"""POST /v1/completions: continue raw prompts."""

from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.answer.detokenizer import Detokenizer
from server.answer.generation import Delta
from server.prompt.plan import PromptPlan, ShownPrompt
from server.prompt.tokenizer import ChatTokenizer
from server.protocol.completion_response import TextCompletionEncoder, TextLogprobs, legacy_token, text_choice
from server.protocol.response import FinishReason
from server.routes.answering import Answer
from server.routes.forms import Kind

router = APIRouter()


@router.post("/v1/completions", summary="Continue raw prompts")
async def create_completion(request: Request) -> Response:
    """Answer with what follows each prompt, whole or streamed."""
    return Answer(request, Kind("completion", CompletionForm))


@dataclass(slots=True)
class _TextChoice:
    """A choice in the making. `offsets` finds where its tokens begin in its text, whatever stop strings hide of it."""

    offsets: Detokenizer
    length: int = 0
    texts: list[str] = field(default_factory=list)
    logprobs: TextLogprobs = field(default_factory=TextLogprobs)
    finish_reason: FinishReason | None = None
    has_begun: bool = False


class CompletionForm:
    """OpenAI's text completion, whole or in chunks; see `AnswerForm`. The choices of a prompt stand together."""

    def __init__(self, model: str, plans: list[PromptPlan], tokenizer: ChatTokenizer) -> None:
        plan = plans[0]
        self._plans = plans
        self._tokenizer = tokenizer
        self._n = plan.n
        self._choices = [_TextChoice(offset_counter(p, tokenizer)) for p in plans for _ in range(p.n)]
        self._scores: list[list[dict[str, Any]]] = [[] for _ in plans]
        """By prompt, of its tokens from the second on."""
        self._encoder = TextCompletionEncoder(
            model=model,
            system_fingerprint=plan.system_fingerprint,
            include_usage=plan.include_usage,
            continuous_usage=plan.continuous_usage,
        )

    def add(self, delta: Delta) -> None:
        """Take a delta into an answer that is sent whole."""
        text, logprobs = self._piece(delta)
        choice = self._choices[delta.index]
        choice.texts.append(text)
        choice.logprobs.extend(logprobs)
        choice.finish_reason = delta.finish_reason or choice.finish_reason

    def whole(self, usage: dict[str, Any]) -> bytes:
        """The answer in one piece, as JSON."""
        choices = [
            text_choice(index, "".join(choice.texts), self._shown(choice.logprobs), choice.finish_reason)
            for index, choice in enumerate(self._choices)
        ]
        return self._encoder.whole(choices, usage)

    def chunks(self, delta: Delta, usage: dict[str, Any] | None) -> list[bytes]:
        """One chunk, if there is something to say."""
        text, logprobs = self._piece(delta)
        if not text and not logprobs.tokens and delta.finish_reason is None:
            return []
        shown = self._shown(logprobs) if logprobs.tokens else None
        return [self._encoder.chunk(text_choice(delta.index, text, shown, delta.finish_reason), usage)]

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        """The last chunk of a stream that ends with its usage."""
        return self._encoder.usage_chunk(usage)

    def _shown(self, logprobs: TextLogprobs) -> TextLogprobs | None:
        return logprobs if self._plans[0].logprobs else None

    def _piece(self, delta: Delta) -> tuple[str, TextLogprobs]:
        """The text of a delta and the log-probabilities of its tokens; in front of a choice's first, its prompt's."""
        position = delta.index // self._n
        choice, plan = self._choices[delta.index], self._plans[position]
        self._scores[position] += delta.prompt_logprobs or ()
        logprobs = TextLogprobs()
        if not delta.token_ids and delta.finish_reason is None:
            return "", logprobs
        text = delta.text
        if not choice.has_begun:
            choice.has_begun = True
            if (prompt := plan.shown) is not None:
                text = prompt.text + text
                choice.length = len(prompt.text)
                self._add_prompt(plan, prompt, self._scores[position], logprobs)
        for token_id, entry in zip(delta.token_ids, delta.logprobs or (), strict=False):
            logprobs.add(entry, choice.length)
            choice.length += len(choice.offsets.push((token_id,)))
        return text, logprobs

    def _add_prompt(
        self, plan: PromptPlan, prompt: ShownPrompt, scores: list[dict[str, Any]], logprobs: TextLogprobs
    ) -> None:
        if not plan.logprobs:
            return
        assert len(scores) == len(plan.prompt_token_ids) - 1
        first = legacy_token({"bytes": self._tokenizer.token_bytes(plan.prompt_token_ids[0])})
        logprobs.add_first(first, prompt.offsets[0])
        for entry, offset in zip(scores, prompt.offsets[1:], strict=True):
            logprobs.add(entry, offset)


def offset_counter(plan: PromptPlan, tokenizer: ChatTokenizer) -> Detokenizer:
    """Tells what each token adds to the text of an answer, whatever stop strings hide of it."""
    return Detokenizer(
        tokenizer,
        skip_special_tokens=plan.skip_special_tokens,
        hidden_ids=plan.hidden_ids,
        prompt_tail_ids=plan.prompt_token_ids[-1:],
    )
