"""What a chat request asks of an answer's form: tool calls, a constraint on the content, a limit on the reasoning."""

import dataclasses
from dataclasses import dataclass

from engine.constraint import Constraint, ReasoningBudget
from server.markup.grammar import ToolSchema, calls_or, free_calls, required_calls
from server.markup.reading import CONTENT_ONLY, Reading
from server.markup.reasoning import (
    CLOSED,
    EFFORT_TOKENS,
    END_THINK,
    THINK,
    closes_reasoning,
    leaves_open,
    opens_reasoning,
)
from server.prompt.tokenizer import ChatTokenizer
from server.protocol.errors import bad_request, unsupported
from server.protocol.exact_numbers import schema_text
from server.protocol.request import ChatCompletionRequest
from server.protocol.tools import Tool

THINKING_VARIABLE = "enable_thinking"
"""By this variable some templates turn reasoning on and off."""
EFFORT_VARIABLE = "reasoning_effort"
TAIL_TOKENS = 16
"""Enough of a prompt's end to see whether it opens or closes reasoning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerPlan:
    """How one answer is held to its form, and read."""

    prompt_token_ids: list[int]
    constraint: Constraint | None
    reasoning_budget: ReasoningBudget | None
    reading: Reading


def template_variables(request: ChatCompletionRequest, tokenizer: ChatTokenizer) -> dict[str, object]:
    """`chat_template_kwargs`, and the template's own switch for reasoning where the request limits it.

    Raises `ApiError` 400 for `max_reasoning_tokens` on a model that does not reason. An effort is a hint, and goes to
    the templates that read it.
    """
    given = dict(request.chat_template_kwargs or {})
    budget = max_reasoning_tokens(request)
    if budget is None:
        return given
    if not tokenizer.prompts.reasons and request.max_reasoning_tokens:
        raise unsupported("max_reasoning_tokens", "max_reasoning_tokens limits reasoning, and this model has none")
    if request.reasoning_effort is not None and EFFORT_VARIABLE in tokenizer.prompts.variables:
        given.setdefault(EFFORT_VARIABLE, request.reasoning_effort)
    if THINKING_VARIABLE in tokenizer.prompts.variables:
        given.setdefault(THINKING_VARIABLE, budget > 0)
    return given


def max_reasoning_tokens(request: ChatCompletionRequest) -> int | None:
    """The limit on reasoning, None where there is none."""
    if request.reasoning_effort is not None:
        return EFFORT_TOKENS[request.reasoning_effort]
    return request.max_reasoning_tokens


def plan_answer(request: ChatCompletionRequest, prompt: list[int], tokenizer: ChatTokenizer) -> AnswerPlan:
    """Everything that the rendered prompt and the request say of the answer's form."""
    content = request.constraint()
    constraint = _tool_constraint(request, tokenizer, content) if request.usable_tools else content
    # Free text may begin with reasoning, and so may text with calls in it; a constraint leaves no room for it.
    is_free = content is None and request.chosen.mode != "required"
    if constraint is not None:
        prompt = _with_reasoning_open(request, prompt, tokenizer)
    reading, prompt, budget = _plan_reasoning(request, prompt, tokenizer, is_free=is_free, exact=content is not None)
    is_open = reading.reasoning == "open"
    if constraint is not None and is_open:
        constraint = dataclasses.replace(constraint, after=END_THINK)
    form = tokenizer.prompts.tool_form.calls if request.usable_tools else None
    marks = (*(form.marks if form else ()), *((THINK, END_THINK) if reading.reasoning != "none" else ()))
    return AnswerPlan(
        prompt_token_ids=prompt,
        constraint=constraint,
        reasoning_budget=budget,
        reading=dataclasses.replace(
            reading,
            exact=content is not None,
            calls=form,
            tool_names=tuple(tool.function.name for _, tool in _callable_tools(request)),
            recover=content is None or request.chosen.mode != "auto",
            shown_ids=frozenset(tokenizer.special_marks(marks).values()),
        ),
    )


def _callable_tools(request: ChatCompletionRequest) -> list[tuple[int, Tool]]:
    """Those tools the model is told of that it may call."""
    names = request.chosen.names
    return [(index, tool) for index, tool in request.usable_tools if names is None or tool.function.name in names]


def _tool_constraint(
    request: ChatCompletionRequest, tokenizer: ChatTokenizer, content: Constraint | None
) -> Constraint:
    form = tokenizer.prompts.tool_form.calls
    special = tokenizer.special_marks(form.marks)
    tools = [
        ToolSchema(
            tool.function.name,
            schema_text(tool.schema_),
            f"{request.function_path(index)}.{tool.schema_field}",
            strict=tool.function.strict is True,
        )
        for index, tool in _callable_tools(request)
    ]
    one_call = request.parallel_tool_calls is False or request.calls_functions or request.chosen.is_named
    parallel = tokenizer.prompts.tool_form.many_calls and not one_call
    if request.chosen.mode == "required":
        return required_calls(form, tools, special, parallel=parallel)
    if content is not None:
        return calls_or(content, form, tools, special, parallel=parallel)
    return free_calls(form, tools, special, parallel=parallel)


def _with_reasoning_open(request: ChatCompletionRequest, prompt: list[int], tokenizer: ChatTokenizer) -> list[int]:
    """The prompt with reasoning open where it is on and left to the model, for a constraint to begin behind it.

    From the first token on the constraint would leave no room for it, or take what it says of calls for calls.
    """
    can_switch = tokenizer.prompts.reasons and THINKING_VARIABLE in tokenizer.prompts.variables
    if not can_switch or max_reasoning_tokens(request) is not None:
        return prompt
    if any(_state_of_reasoning(request, prompt, tokenizer)):
        return prompt
    question = [{"role": "user", "content": "x"}]
    switched_off = tokenizer.prompts.write(question, kwargs={THINKING_VARIABLE: False}).plain
    if not closes_reasoning(switched_off):
        return prompt  # it is off unless a request turns it on
    return [*prompt, *tokenizer.encode(f"{THINK}\n", allow_special=True)]


def _state_of_reasoning(
    request: ChatCompletionRequest, prompt: list[int], tokenizer: ChatTokenizer
) -> tuple[bool, bool]:
    """Whether the prompt ends with reasoning that is open, and whether with reasoning that is over."""
    if request.continue_final_message:
        return leaves_open(request.messages[-1].text), True
    tail = tokenizer.decode(prompt[-TAIL_TOKENS:], skip_special_tokens=False)
    return opens_reasoning(tail), closes_reasoning(tail)


def _plan_reasoning(
    request: ChatCompletionRequest, prompt: list[int], tokenizer: ChatTokenizer, *, is_free: bool, exact: bool
) -> tuple[Reading, list[int], ReasoningBudget | None]:
    """Whether the answer begins with reasoning, and the prompt, which a limit may need to open or close it."""
    if not tokenizer.prompts.reasons:
        return CONTENT_ONLY, prompt, None
    is_open, is_closed = _state_of_reasoning(request, prompt, tokenizer)
    limit = max_reasoning_tokens(request)
    if limit is None:
        possible = is_free and not is_closed
        return Reading(reasoning="open" if is_open else "possible" if possible else "none"), prompt, None
    if not is_open and is_closed:
        if limit and not request.continue_final_message:
            raise bad_request(
                "the request asks for reasoning, and the prompt has ended it already: see chat_template_kwargs",
                param="reasoning_effort" if request.max_reasoning_tokens is None else "max_reasoning_tokens",
            )
        return CONTENT_ONLY, prompt, None
    if not is_open:
        opened = f"{THINK}\n" if limit else f"{THINK}{CLOSED}"
        prompt = [*prompt, *tokenizer.encode(opened, allow_special=True)]
        if not limit:
            return CONTENT_ONLY, prompt, None
    # The gap behind the mark would be the beginning of what a constraint holds to the letter.
    end = tuple(tokenizer.encode(CLOSED.rstrip() if exact else CLOSED, allow_special=True))
    return Reading(reasoning="open"), prompt, ReasoningBudget(max_tokens=limit, end_token_ids=end, end=END_THINK)
