"""POST /v1/chat/completions: continue a conversation."""

import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.answer.generation import Delta
from server.markup.events import CallOpened
from server.prompt.plan import PromptPlan
from server.prompt.tokenizer import ChatTokenizer
from server.protocol.response import (
    Choice,
    ChunkEncoder,
    FinishReason,
    FunctionCall,
    call_pieces,
    chat_completion,
    encode_json,
    new_completion_id,
)
from server.routes.answering import Answer
from server.routes.forms import Kind

router = APIRouter()


@router.post("/v1/chat/completions", summary="Continue a conversation")
async def create_chat_completion(request: Request) -> Response:
    """Answer with the assistant's next turn, whole or streamed."""
    return Answer(request, Kind("chat", ChatForm))


class ChatForm:
    """OpenAI's chat completion, whole or in chunks; see `AnswerForm`."""

    def __init__(self, model: str, plans: list[PromptPlan], tokenizer: ChatTokenizer) -> None:
        """A conversation is one prompt, so there is one plan."""
        (plan,) = plans
        self._id = new_completion_id()
        self._model = model
        self._fingerprint = plan.system_fingerprint
        self._calls_functions = plan.calls_functions
        self._collected = [_Collected(calls_functions=plan.calls_functions) for _ in range(plan.n)]
        self._begun: set[int] = set()
        """Choices of which a chunk has been made."""
        self._called: set[int] = set()
        """Choices with calls."""
        self._encoder = ChunkEncoder(
            completion_id=self._id,
            model=model,
            system_fingerprint=plan.system_fingerprint,
            include_usage=plan.include_usage,
            continuous_usage=plan.continuous_usage,
        )

    def add(self, delta: Delta) -> None:
        """Take a delta into an answer that is sent whole."""
        self._collected[delta.index].add(delta)

    def whole(self, usage: dict[str, Any]) -> bytes:
        """The answer in one piece, as JSON."""
        body = chat_completion(
            completion_id=self._id,
            created=int(time.time()),
            model=self._model,
            system_fingerprint=self._fingerprint,
            choices=[choice.finished(index) for index, choice in enumerate(self._collected)],
            usage=usage,
        )
        return encode_json(body)

    def chunks(self, delta: Delta, usage: dict[str, Any] | None) -> list[bytes]:
        """Reasoning, text and calls, then the reason of the end. What comes first of a choice has the role.

        Before text the role comes in a chunk of its own, as OpenAI's: some clients read no text beside it.
        """
        encoder, index, chunks = self._encoder, delta.index, []
        if delta.reasoning:
            chunks.append(encoder.reasoning(index, delta.reasoning, usage, opens=self._opens(index)))
        has_text = bool(delta.text or delta.logprobs)
        if (has_text or (delta.finish_reason and not delta.calls)) and self._opens(index):
            chunks.append(encoder.role(index, usage))
        if has_text:
            chunks.append(encoder.text(index, delta.text, delta.logprobs, usage))
        if delta.calls:
            self._called.add(index)
            pieces = call_pieces(delta.calls)
            as_function = self._calls_functions
            chunks.append(encoder.calls(index, pieces, usage, opens=self._opens(index), as_function=as_function))
        if delta.finish_reason is not None:
            chunks.append(encoder.finish(index, delta.finish_reason, usage, called=index in self._called))
        return chunks

    def _opens(self, index: int) -> bool:
        """Whether nothing has come of a choice yet; asked once, it has."""
        opens = index not in self._begun
        self._begun.add(index)
        return opens

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        """The last chunk of a stream that ends with its usage."""
        return self._encoder.usage(usage)


class _Collected:
    """A choice in the making."""

    def __init__(self, *, calls_functions: bool) -> None:
        self._calls_functions = calls_functions
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[CallOpened, list[str]]] = []
        self._logprobs: list[dict[str, Any]] | None = None
        self._finish_reason: FinishReason = "stop"

    def add(self, delta: Delta) -> None:
        self._texts.append(delta.text)
        self._reasoning.append(delta.reasoning)
        for event in delta.calls:
            if isinstance(event, CallOpened):
                self._calls.append((event, []))
            else:
                self._calls[event.index][1].append(event.text)
        if delta.logprobs is not None:
            self._logprobs = (self._logprobs or []) + delta.logprobs
        if delta.finish_reason is not None:
            self._finish_reason = delta.finish_reason

    def finished(self, index: int) -> Choice:
        return Choice(
            index=index,
            content="".join(self._texts),
            finish_reason=self._finish_reason,
            reasoning="".join(self._reasoning),
            tool_calls=[FunctionCall(call.id, call.name, "".join(pieces)) for call, pieces in self._calls],
            calls_functions=self._calls_functions,
            logprobs=self._logprobs,
        )
