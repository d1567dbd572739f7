"""From a checked request to what the engine needs: prompt ids and sampling parameters."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from engine.errors import RequestError
from engine.messages import EngineInfo
from engine.sampling_params import SamplingParams
from server.config.sampling_defaults import SamplingDefaults
from server.markup.reading import CONTENT_ONLY, Reading
from server.prompt.image_spans import ImageTokens, expand
from server.prompt.plan_tools import AnswerPlan, plan_answer, template_variables
from server.prompt.tokenizer import ChatTokenizer
from server.prompt.unused import unused_fields
from server.protocol.errors import context_length_exceeded, from_request_error
from server.protocol.function_turns import plain_messages
from server.protocol.generation_request import GenerationRequest
from server.protocol.prompts import Conversation
from server.protocol.request import ChatCompletionRequest

T = TypeVar("T")

SMALLEST_NUCLEUS = 1e-9
"""A `top_p` of 0, which the likeliest token alone fulfils as well as this."""


@dataclass(frozen=True, slots=True)
class Echo:
    """What is needed to show a raw prompt before its answers."""

    text: str | None
    """As it came; None for a prompt of token ids, which is decoded."""
    added: list[bool]
    """Of each token of the prompt, whether the tokenizer added it to the text."""


@dataclass(frozen=True, slots=True)
class ShownPrompt:
    """The text of a prompt, and where in it each of its tokens begins, in characters."""

    text: str
    offsets: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptPlan:
    """One prompt of a request, ready to be submitted, and how its answers are to be shown."""

    prompt_token_ids: list[int]
    params: SamplingParams
    n: int
    stop: tuple[str, ...]
    include_stop: bool
    skip_special_tokens: bool
    hidden_ids: frozenset[int]
    """Ids that end the answer and are not part of its text."""
    continues: bool
    """The answer continues the prompt's last message."""
    stream: bool
    include_usage: bool
    continuous_usage: bool
    system_fingerprint: str
    priority: int = 0
    prompt_param: str = "messages"
    """The field of the request that errors of the prompt blame."""
    echo: Echo | None = None
    shown: ShownPrompt | None = None
    """What `echo` makes of the prompt; `server.answer.echo` fills it in."""
    reading: Reading = CONTENT_ONLY
    spells: bool = False
    """The answers' log-probabilities are those of the tokens that spell the content, else of every token."""
    names_call: bool = False
    """The request names the function to call, which OpenAI's table of finish reasons tells apart."""
    calls_functions: bool = False
    """A call is answered in OpenAI's older form."""
    unused: tuple[str, ...] = ()
    """JSON pointers of what the model makes no use of, or was ignored."""
    images: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    """Where in the prompt the tokens of each image begin, and how many there are to the last of them."""
    cache_key: str | None = None
    """Prompts are cached for requests of the same key alone."""
    least_answer_tokens: int
    """See `GenerationRequest`."""
    says_limit: bool = True
    """Whether the request says how long its answers may be; else a default holds, or what the context leaves."""

    @property
    def num_image_tokens(self) -> int:
        """Tokens of the prompt that stand for images."""
        return sum(count for _, count in self.images)

    @property
    def logprobs(self) -> bool:
        """Whether log-probabilities are part of the answer."""
        return self.params.logprobs is not None


def plan_chat(
    request: ChatCompletionRequest,
    tokenizer: ChatTokenizer,
    info: EngineInfo,
    defaults: SamplingDefaults,
    image_tokens: Sequence[list[int]] = (),
) -> PromptPlan:
    """Render, tokenise and check a request against one model.

    `image_tokens` are those that stand for each image of the conversation. Raises `ApiError` 400 for what the template
    refuses, a prompt or a token limit without room, reasoning where there is none, and ids outside the vocabulary.
    """
    prompt, images = conversation_ids(
        request,
        tokenizer,
        info,
        image_tokens,
        tools=[tool.plain() for _, tool in request.usable_tools],
        tool_prompt=request.tool_prompt or None if request.usable_tools else None,
        variables=template_variables(request, tokenizer),
    )
    answer = plan_answer(request, prompt, tokenizer)
    params = _chat_params(request, answer, info, defaults)
    plan = make_plan(request, answer.prompt_token_ids, params, info, continues=bool(request.continue_final_message))
    return dataclasses.replace(
        plan,
        images=images,
        reading=answer.reading,
        spells=plan.logprobs,
        names_call=request.chosen.is_named,
        calls_functions=request.calls_functions,
        unused=unused_fields(request, tokenizer, tools=bool(request.usable_tools)),
    )


def _chat_params(
    request: ChatCompletionRequest, answer: AnswerPlan, info: EngineInfo, defaults: SamplingDefaults
) -> SamplingParams:
    length = len(answer.prompt_token_ids)
    limit_param = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    limit = token_limit(length, request.token_limit, info, prompt_param="messages", limit_param=limit_param)
    logprobs = _or(request.top_logprobs, 0) if request.logprobs else None
    params = sampling_params(request, defaults, max_tokens=limit, logprobs=logprobs)
    return dataclasses.replace(params, constraint=answer.constraint, reasoning_budget=answer.reasoning_budget)


def conversation_ids(
    request: Conversation,
    tokenizer: ChatTokenizer,
    info: EngineInfo,
    image_tokens: Sequence[list[int]] = (),
    *,
    tools: list[dict[str, Any]] | None = None,
    tool_prompt: str | None = None,
    variables: Mapping[str, Any] | None = None,
) -> tuple[list[int], list[tuple[int, int]]]:
    """The prompt that a conversation is, and where in it images are (`expand`).

    `image_tokens` are those that stand for each image; `variables` stand in place of the request's
    `chat_template_kwargs`. Raises `ApiError` 400 for what the model's template refuses, and maybe for a prompt that
    cannot fit into the context.
    """
    continues = bool(request.continue_final_message)
    ids = tokenizer.encode_prompt(
        plain_messages(request.messages),
        add_generation_prompt=_or(request.add_generation_prompt, not continues),
        continue_final_message=continues,
        tools=tools or None,
        tool_prompt=tool_prompt,
        kwargs=request.chat_template_kwargs if variables is None else variables,
        context=usable_context(info),
        images=info.images,
    )
    tokens = None if info.images is None else ImageTokens(info.images, tuple(image_tokens))
    return expand(ids, tokens, len(request.images))


def make_plan(
    request: GenerationRequest,
    prompt: list[int],
    params: SamplingParams,
    info: EngineInfo,
    *,
    continues: bool,
    prompt_param: str = "messages",
    echo: Echo | None = None,
) -> PromptPlan:
    """Put together what the fields that all requests share say of one prompt.

    Raises `ApiError` 400 for sampling parameters that this model cannot follow.
    """
    try:
        params.check(info.vocab_size)
    except RequestError as error:
        raise from_request_error(error) from None
    include_stop = bool(request.include_stop_str_in_output)
    options = request.stream_options
    return PromptPlan(
        prompt_token_ids=prompt,
        params=params,
        n=_or(request.n, 1),
        stop=request.stop_strings,
        include_stop=include_stop,
        skip_special_tokens=_or(request.skip_special_tokens, True),
        hidden_ids=frozenset() if include_stop else _ending_ids(params, info.eos_token_ids),
        continues=continues,
        stream=bool(request.stream),
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.continuous_usage_stats and options.include_usage is not False),
        system_fingerprint=system_fingerprint(info),
        priority=_or(request.priority, 0),
        prompt_param=prompt_param,
        echo=echo,
        least_answer_tokens=request.least_answer_tokens,
        says_limit=request.token_limit is not None,
    )


def system_fingerprint(info: EngineInfo) -> str:
    """Changes with everything that can change the numbers."""
    return f"fp_{hashlib.sha256(info.numerics.encode()).hexdigest()[:12]}"


def usable_context(info: EngineInfo) -> int:
    """Tokens that a prompt and its answer may have together."""
    return min(info.context, info.kv_tokens)


def token_limit(
    prompt_tokens: int, asked: int | None, info: EngineInfo, *, prompt_param: str, limit_param: str = "max_tokens"
) -> int:
    """The answer's limit: as asked, or all that is left. Nothing is ever cut to fit.

    Raises `ApiError` 400 for a prompt that leaves no room, and for more than the room.
    """
    context = usable_context(info)
    room = context - prompt_tokens
    if room < 1 and not (asked == 0 == room):
        raise context_length_exceeded(
            f"This model's context is {context} tokens and {prompt_param} has {prompt_tokens} tokens, which leaves "
            "no room for an answer; shorten it",
            param=prompt_param,
        )
    if asked is None:
        return room
    if asked > room:
        raise context_length_exceeded(
            f"This model's context is {context} tokens; {prompt_param} has {prompt_tokens} tokens and {limit_param} "
            f"asks for {asked} more, {prompt_tokens + asked} together; at most {room} are left",
            param=limit_param,
        )
    return asked


def sampling_params(
    request: GenerationRequest,
    defaults: SamplingDefaults,
    *,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
) -> SamplingParams:
    """What a model's generation_config.json suggests is not applied: only models.yaml has defaults of its own."""
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_or(request.temperature, defaults.temperature),
        top_p=max(SMALLEST_NUCLEUS, _or(request.top_p, defaults.top_p)),
        top_k=max(0, _or(request.top_k, defaults.top_k)),
        min_p=_or(request.min_p, defaults.min_p),
        frequency_penalty=_or(request.frequency_penalty, 0.0),
        presence_penalty=_or(request.presence_penalty, 0.0),
        repetition_penalty=_or(request.repetition_penalty, defaults.repetition_penalty),
        logit_bias={int(token_id): bias for token_id, bias in (request.logit_bias or {}).items()},
        seed=request.seed,
        min_tokens=_or(request.min_tokens, 0),
        ignore_eos=bool(request.ignore_eos),
        stop_token_ids=tuple(dict.fromkeys(request.stop_token_ids or ())),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def _ending_ids(params: SamplingParams, eos_token_ids: Sequence[int]) -> frozenset[int]:
    return frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else frozenset(eos_token_ids))


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
