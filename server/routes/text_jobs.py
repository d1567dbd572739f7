"""What each route does with the text of a request, here or in a process of its own (`server.routes.text_worker`)."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from engine.messages import EngineInfo
from server.answer.echo import with_shown_prompt
from server.config.sampling_defaults import SamplingDefaults
from server.prompt.plan import PromptPlan, conversation_ids, plan_chat
from server.prompt.plan_completion import check_token_ids, plan_completion
from server.prompt.text_messages import Answered, AskedPrompt, TextRoute
from server.prompt.tokenizer import ChatTokenizer
from server.prompt.unused import unused_fields
from server.protocol.completion_request import CompletionRequest, read_completion_request
from server.protocol.errors import context_length_exceeded
from server.protocol.generate_request import read_generate_request
from server.protocol.parts import ImageRef
from server.protocol.request import read_chat_request
from server.protocol.response import encode_json
from server.protocol.tokenize_request import (
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizeTextRequest,
    read_detokenize_request,
    read_tokenize_request,
)


@dataclass(frozen=True, slots=True)
class Model:
    """What text work needs to know of a model."""

    tokenizer: ChatTokenizer
    info: EngineInfo
    defaults: SamplingDefaults
    image_tokens: Sequence[list[int]] = ()
    """What stands in the prompt for each image of the request."""


@dataclass(frozen=True, slots=True)
class TextJob:
    """A body that has been read and checked. One of the two kinds of work is to be done for it.

    Both raise `ApiError` for what the model cannot do.
    """

    model: str | None
    """The model that it names."""
    num_choices: int = 1
    is_stream: bool = False
    """Whether it asks for its answer as a stream."""
    images: Sequence[ImageRef] = ()
    """The images of its conversation, in order."""
    timeout: float | None = None
    """The seconds that it gives itself."""
    answer_tokens: int = 0
    """What its answers may take together at the least."""
    plans: Callable[[Model], Iterator[PromptPlan]] | None = None
    """The prompts, one by one."""
    answer: Callable[[Model], Answered] | None = None
    """The whole answer, which is made of text alone."""

    def do(self, model: Model) -> tuple[list[PromptPlan], Answered]:
        """The plans, or the answer."""
        return list(self.plans(model)) if self.plans else [], self.answer(model) if self.answer else Answered()


def _read_chat(raw: bytes, ignore_unknown: bool) -> TextJob:
    chat, ignored = read_chat_request(raw, ignore_unknown=ignore_unknown)

    def plans(model: Model) -> Iterator[PromptPlan]:
        plan = plan_chat(chat, model.tokenizer, model.info, model.defaults, model.image_tokens)
        yield dataclasses.replace(plan, unused=(*ignored, *plan.unused), cache_key=chat.prompt_cache_key)

    num_choices = chat.n or 1
    return TextJob(
        chat.model, num_choices, is_stream=bool(chat.stream), images=chat.images, timeout=chat.timeout,
        answer_tokens=num_choices * chat.least_answer_tokens, plans=plans,
    )  # fmt: skip


def _read_completion(raw: bytes, ignore_unknown: bool) -> TextJob:
    return _completion_job(*read_completion_request(raw, ignore_unknown=ignore_unknown))


def _read_generate(raw: bytes, ignore_unknown: bool, *, stream: bool | None = None) -> TextJob:
    return _completion_job(*read_generate_request(raw, ignore_unknown=ignore_unknown, stream=stream))


def _completion_job(request: CompletionRequest, ignored: tuple[str, ...]) -> TextJob:
    def plans(model: Model) -> Iterator[PromptPlan]:
        for plan in plan_completion(request, model.tokenizer, model.info, model.defaults):
            yield with_shown_prompt(dataclasses.replace(plan, unused=(*ignored, *plan.unused)), model.tokenizer)

    num_choices = (request.n or 1) * len(request.prompts)
    return TextJob(
        request.model, num_choices, is_stream=bool(request.stream), timeout=request.timeout,
        answer_tokens=num_choices * request.least_answer_tokens, plans=plans,
    )  # fmt: skip


def _read_tokenize(raw: bytes, ignore_unknown: bool) -> TextJob:
    request, ignored = read_tokenize_request(raw, ignore_unknown=ignore_unknown)
    images = request.images if isinstance(request, TokenizeChatRequest) else []

    def answer(model: Model) -> Answered:
        unused = list(ignored)
        if isinstance(request, TokenizeChatRequest):
            unused += unused_fields(request, model.tokenizer, tools=bool(request.tools))
        answer, prompt = _tokenize(request, model)
        return Answered(encode_json(answer), unused, prompt if request.return_cached_tokens else None)

    return TextJob(request.model, images=images, answer=answer)


def _read_detokenize(raw: bytes, ignore_unknown: bool) -> TextJob:
    request, ignored = read_detokenize_request(raw, ignore_unknown=ignore_unknown)
    return TextJob(
        request.model, answer=lambda model: Answered(encode_json(_detokenize(request, model)), list(ignored))
    )


READERS: Mapping[TextRoute, Callable[[bytes, bool], TextJob]] = {
    "chat": _read_chat,
    "completion": _read_completion,
    "generate": partial(_read_generate, stream=False),
    "generate_stream": partial(_read_generate, stream=True),
    "generate_either": _read_generate,
    "tokenize": _read_tokenize,
    "detokenize": _read_detokenize,
}
"""How the body of each route is read, and whether unknown fields are ignored. Each raises `ApiError` 400."""


def _tokenize(request: TokenizeTextRequest | TokenizeChatRequest, model: Model) -> tuple[dict[str, Any], AskedPrompt]:
    tokenizer, context = model.tokenizer, model.info.context
    if isinstance(request, TokenizeChatRequest):
        tools = [tool.plain() for tool in request.tools or ()]
        ids, images = conversation_ids(
            request, tokenizer, model.info, model.image_tokens, tools=tools, tool_prompt=request.tool_prompt
        )
        prompt = AskedPrompt(ids, images, request.prompt_cache_key)
    else:
        tokenizer.bounds.check(request.prompt, context, "prompt")
        ids, _ = tokenizer.encode_raw(request.prompt, add_special_tokens=request.add_special_tokens is not False)
        prompt = AskedPrompt(ids)
    answer = {
        "count": len(ids),
        "max_model_len": context,
        "tokens": ids,
        "token_strs": [tokenizer.token_text(token_id) for token_id in ids] if request.return_token_strs else None,
        "special_positions": [at for at, token_id in enumerate(ids) if token_id in tokenizer.special_ids]
        if request.return_token_strs
        else None,
        "cached_tokens": None,
    }
    return answer, prompt


def _detokenize(request: DetokenizeRequest, model: Model) -> dict[str, Any]:
    num_tokens, context = len(request.tokens), model.info.context
    if num_tokens > context:
        raise context_length_exceeded(
            f"This model's context is {context} tokens and tokens holds {num_tokens}; send fewer at once",
            param="tokens",
        )
    check_token_ids(request.tokens, model.info, "tokens")
    return {"prompt": model.tokenizer.decode(request.tokens, skip_special_tokens=False)}
