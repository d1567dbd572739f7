"""The choices of one prompt on their way from token ids to text."""

from dataclasses import dataclass, field
from typing import Any, cast

from engine.messages import SequenceOutput, TokenLogprobs
from server.answer.answer_text import AnswerText
from server.answer.detokenizer import logprob_entries
from server.markup.events import CallArguments, CallOpened, ContentText, Event, ReasoningText
from server.prompt.plan import PromptPlan
from server.prompt.tokenizer import ChatTokenizer
from server.protocol.errors import ApiError, bad_request, context_length_exceeded, overloaded
from server.protocol.response import FinishReason, usage

OVERLOADED_RETRY_SECONDS = 2


@dataclass(slots=True)
class Delta:
    """What came for one choice since the last look. `finish_reason` is set once, in a choice's last delta.

    The entries of `logprobs` go together with `token_ids` one by one, unless the plan has them spell the text.
    `prompt_logprobs` come in pieces, before tokens.
    """

    index: int
    text: str = ""
    reasoning: str = ""
    calls: list[CallOpened | CallArguments] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[str, Any]] | None = None
    prompt_logprobs: list[dict[str, Any]] | None = None
    finish_reason: FinishReason | None = None


class Generation:
    """Detokenises and counts; knows neither HTTP nor the engine's process."""

    def __init__(self, plan: PromptPlan, tokenizer: ChatTokenizer) -> None:
        self.plan = plan
        self.completion_tokens = 0
        """Tokens that made up the answers, up to the one that completed a stop string."""
        self.reasoning_tokens = 0
        """Those of them that were reasoning."""
        self._tokenizer = tokenizer
        self.cached_tokens = 0
        """Tokens of the prompt that the prefix cache spared."""
        self.queue_seconds: float | None = None
        """What the first of its choices waited for in the engine, once that has a token."""
        self._num_scored = 0
        self._texts = [AnswerText.of_plan(plan, tokenizer) for _ in range(plan.n)]
        # Where it matters which token completed what, the text is read token by token.
        self._tokenwise = bool(plan.stop) or plan.reading.reasoning != "none" or plan.spells
        self._started = [False] * plan.n
        self._finished = [False] * plan.n

    def usage(self) -> dict[str, Any]:
        """Counts so far: the prompt once, the answers together."""
        return usage(len(self.plan.prompt_token_ids), self.completion_tokens, self.cached_tokens, self.reasoning_tokens)

    def take(self, outputs: list[SequenceOutput]) -> list[Delta]:
        """Turn all that has come into one delta for each choice it came for.

        Raises `ApiError` if the engine failed the request: 400 where it names a field, 503 if it is full,
        else 500.
        """
        deltas: dict[int, Delta] = {}
        for output in outputs:
            if output.finish_reason == "error":
                raise _failure(output, self.plan.prompt_param)
            if self._finished[output.index]:
                continue
            delta = deltas.get(output.index)
            if delta is None:
                delta = deltas[output.index] = Delta(output.index)
                if not self._started[output.index]:
                    self._begin(output)
            self._extend(delta, output)
        return list(deltas.values())

    def _begin(self, output: SequenceOutput) -> None:
        self._started[output.index] = True
        # Choices after the first find the prompt that the first has computed; only what was there before counts.
        if sum(self._started) == 1:
            self.cached_tokens = output.num_cached_tokens
            self.queue_seconds = output.queue_seconds

    def _extend(self, delta: Delta, output: SequenceOutput) -> None:
        if output.prompt_logprobs is not None:
            self._extend_scores(delta, output.prompt_logprobs)
        text = self._texts[output.index]
        ids = output.token_ids
        if self._tokenwise:
            ids = self._read_tokenwise(delta, text, ids, output.logprobs)
        else:
            _add(delta, text.push(ids))
        self.completion_tokens += len(ids)
        delta.token_ids += ids
        has_ended = output.finish_reason is not None or text.stopped is not None
        if has_ended:
            _add(delta, text.finish(cut=output.finish_reason == "length"))
        entries = self._entries(text, ids, output.logprobs)
        if entries is not None:
            delta.logprobs = entries if delta.logprobs is None else delta.logprobs + entries
        if not has_ended:
            return
        self._finished[output.index] = True
        # What is held back at the end can complete a stop string only together with more text, so this is the answer.
        reason = "stop" if text.stopped is not None else cast(FinishReason, output.finish_reason)
        called = reason == "stop" and text.num_calls and not self.plan.names_call
        if called:
            reason = "function_call" if self.plan.calls_functions else "tool_calls"
        delta.finish_reason = reason

    def _entries(
        self, text: AnswerText, ids: list[int], logprobs: list[TokenLogprobs] | None
    ) -> list[dict[str, Any]] | None:
        """What is to be said of tokens that were read, None where nothing is asked for."""
        if self.plan.spells:
            entries, text.spelled = text.spelled, []
            return entries
        return None if logprobs is None else logprob_entries(self._tokenizer, ids, logprobs[: len(ids)])

    def _read_tokenwise(
        self, delta: Delta, text: AnswerText, ids: list[int], logprobs: list[TokenLogprobs] | None
    ) -> list[int]:
        """Read ids up to the one that completes a stop string; those that were read."""
        for number, token_id in enumerate(ids):
            was_reasoning = text.is_reasoning
            if self.plan.spells and logprobs is not None:
                (entry,) = logprob_entries(self._tokenizer, (token_id,), (logprobs[number],))
                _add(delta, text.push_scored(token_id, entry))
            else:
                _add(delta, text.push((token_id,)))
            self.reasoning_tokens += was_reasoning or text.is_reasoning
            if text.stopped is not None:
                return ids[: number + 1]
        return ids

    def _extend_scores(self, delta: Delta, scores: list[TokenLogprobs]) -> None:
        first = self._num_scored + 1  # the first token of a prompt follows nothing
        self._num_scored += len(scores)
        ids = self.plan.prompt_token_ids[first : first + len(scores)]
        entries = logprob_entries(self._tokenizer, ids, scores)
        delta.prompt_logprobs = entries if delta.prompt_logprobs is None else delta.prompt_logprobs + entries


def _add(delta: Delta, events: list[Event]) -> None:
    for event in events:
        match event:
            case ContentText(text):
                delta.text += text
            case ReasoningText(text):
                delta.reasoning += text
            case CallOpened() | CallArguments():
                delta.calls.append(event)


def _failure(output: SequenceOutput, prompt_param: str) -> ApiError:
    """`prompt_param` is the field that holds the prompt; the engine knows that of a chat only."""
    message = output.error or "The engine could not serve this request"
    if output.error_code == "overloaded":
        return overloaded(message, retry_after=OVERLOADED_RETRY_SECONDS, reason="engine_queue")
    if output.error_code == "context_length_exceeded":
        return context_length_exceeded(message, param=prompt_param)
    if output.error_param is not None:
        param = prompt_param if output.error_param == "messages" else output.error_param
        return bad_request(message, param=param)
    return ApiError(500, message, type="server_error", code="engine_error")
