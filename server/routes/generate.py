"""POST /generate and its relatives: Text Generation Inference's interface for raw prompts.

huggingface_hub's `text_generation` and Outlines' `from_tgi` ask the server's root.
"""

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.answer.generation import Delta
from server.prompt.plan import PromptPlan
from server.prompt.tokenizer import ChatTokenizer
from server.protocol.response import FinishReason, encode_json
from server.routes.answering import Answer
from server.routes.completions import offset_counter
from server.routes.forms import Kind

router = APIRouter()


@router.post("/generate", summary="Continue a raw prompt, as Text Generation Inference does")
async def generate(request: Request) -> Response:
    """Answer with what follows the prompt, whole."""
    return Answer(request, Kind("generate", GenerateForm, says_done=False))


@router.post("/generate_stream", summary="The same, streamed")
async def generate_stream(request: Request) -> Response:
    """Answer with what follows the prompt, token by token."""
    return Answer(request, Kind("generate_stream", GenerateForm, says_done=False))


@router.post("/", summary="The same, streamed or in an array of one")
async def generate_either(request: Request) -> Response:
    """Answer as the body's `stream` says."""
    return Answer(request, Kind("generate_either", partial(GenerateForm, in_array=True), says_done=False))


class GenerateForm:
    """A text in one piece, or an event for each token whose texts add up to it; see `AnswerForm`."""

    def __init__(
        self, model: str, plans: list[PromptPlan], tokenizer: ChatTokenizer, *, in_array: bool = False
    ) -> None:
        (self._plan,) = plans
        self._special_ids = tokenizer.special_ids
        self._shares = offset_counter(self._plan, tokenizer)
        self._in_array = in_array
        self._text = ""
        self._tokens: list[dict[str, Any]] = []
        self._num_tokens = 0
        self._finish_reason: FinishReason | None = None

    def add(self, delta: Delta) -> None:
        """Take a delta into an answer that is sent whole."""
        self._take(delta)

    def whole(self, usage: dict[str, Any]) -> bytes:
        """The answer in one piece, with details where they are asked for."""
        answer: dict[str, Any] = {"generated_text": self._shown_text}
        if self._plan.logprobs:
            answer["details"] = {**self._details(), "prefill": [], "tokens": self._tokens}
        return encode_json([answer] if self._in_array else answer)

    def chunks(self, delta: Delta, usage: dict[str, Any] | None) -> list[bytes]:
        """An event for each token; the last holds the whole text."""
        before = len(self._tokens)
        self._take(delta)
        if delta.finish_reason is not None and len(self._tokens) == before:
            self._tokens.append(self._token(self._tokens[-1]["id"] if before else 0, delta.text, 0.0))
        events: list[dict[str, Any]] = [
            {"index": number, "token": token, "generated_text": None, "details": None}
            for number, token in enumerate(self._tokens[before:], before + 1)
        ]
        if delta.finish_reason is not None:
            events[-1] |= {"generated_text": self._shown_text, "details": self._details()}
        return [encode_json(event) for event in events]

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        """Never asked for: the last event has the counts."""
        raise AssertionError("no request of this interface can ask for it")

    def _take(self, delta: Delta) -> None:
        self._text += delta.text
        self._num_tokens += len(delta.token_ids)
        self._finish_reason = delta.finish_reason or self._finish_reason
        if delta.logprobs:
            texts = self._texts(delta)
            for token_id, entry, text in zip(delta.token_ids, delta.logprobs, texts, strict=True):
                self._tokens.append(self._token(token_id, text, entry["logprob"]))

    def _texts(self, delta: Delta) -> list[str]:
        """What each token of a delta adds to the text; all is the last one's where stop strings hold some back."""
        *firsts, _ = [self._shares.push((token_id,)) for token_id in delta.token_ids]
        known = "".join(firsts)
        if not delta.text.startswith(known):
            return [*("" for _ in firsts), delta.text]
        return [*firsts, delta.text.removeprefix(known)]

    def _token(self, token_id: int, text: str, logprob: float) -> dict[str, Any]:
        is_special = token_id in self._special_ids and not text
        return {"id": token_id, "text": text, "logprob": logprob, "special": is_special}

    @property
    def _shown_text(self) -> str:
        shown = self._plan.shown
        return self._text if shown is None else shown.text + self._text

    def _details(self) -> dict[str, Any]:
        reason = "length"
        if self._finish_reason != "length":
            reason = "stop_sequence" if self._text.endswith(self._plan.stop) else "eos_token"
        return {
            "finish_reason": reason,
            "generated_tokens": self._num_tokens,
            "seed": self._plan.params.seed,
            "input_length": len(self._plan.prompt_token_ids),
        }
