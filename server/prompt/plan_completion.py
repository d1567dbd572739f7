"""From a checked request for raw completions to what the engine needs: a plan for each prompt."""

import dataclasses

from engine.messages import EngineInfo
from server.config.sampling_defaults import SamplingDefaults
from server.prompt.plan import Echo, PromptPlan, make_plan, sampling_params, token_limit, usable_context
from server.prompt.tokenizer import ChatTokenizer
from server.protocol.completion_request import CompletionRequest
from server.protocol.errors import bad_request


def plan_completion(
    request: CompletionRequest, tokenizer: ChatTokenizer, info: EngineInfo, defaults: SamplingDefaults
) -> list[PromptPlan]:
    """Tokenise and check the prompts of a request against one model.

    A raw prompt is where a client writes the template itself, so control tokens in its text are matched. Raises
    `ApiError` 400 for an empty prompt, one that leaves no room, token ids and limits beyond the model's.
    """
    return [_plan(request, param, prompt, tokenizer, info, defaults) for param, prompt in request.prompts]


def check_token_ids(ids: list[int], info: EngineInfo, param: str) -> None:
    """Raise `ApiError` 400 for the first id beyond the width of the logits."""
    for index, token_id in enumerate(ids):
        if token_id >= info.vocab_size:
            raise bad_request(
                f"{param}[{index}] is token {token_id}, outside this model's vocabulary of {info.vocab_size} tokens",
                param=f"{param}[{index}]",
            )


def _plan(
    request: CompletionRequest,
    param: str,
    prompt: str | list[int],
    tokenizer: ChatTokenizer,
    info: EngineInfo,
    defaults: SamplingDefaults,
) -> PromptPlan:
    if isinstance(prompt, str):
        tokenizer.bounds.check(prompt, usable_context(info), param)
        ids, added = tokenizer.encode_raw(prompt, add_special_tokens=request.add_special_tokens is not False)
    else:
        ids, added = prompt, [False] * len(prompt)
        check_token_ids(ids, info, param)
    if not ids:
        raise bad_request(f"{param} has no tokens, so there is nothing to continue", param=param)
    room = token_limit(len(ids), 0 if request.max_tokens == 0 else None, info, prompt_param=param)
    asked = min(request.default_max_tokens, room) if request.max_tokens is None else request.max_tokens
    params = sampling_params(
        request,
        defaults,
        max_tokens=token_limit(len(ids), asked, info, prompt_param=param, limit_param=request.limit_param),
        logprobs=request.logprobs,
        prompt_logprobs=request.logprobs if request.echo else None,
    )
    params = dataclasses.replace(params, constraint=request.constraint())
    echo = Echo(prompt if isinstance(prompt, str) else None, added) if request.echo else None
    return make_plan(request, ids, params, info, continues=True, prompt_param=param, echo=echo)
