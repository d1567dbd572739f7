"""How each real template is told of tools and shows their calls, and what it makes of limits on reasoning."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.constraint import ReasoningBudget
from server.config.sampling_defaults import SamplingDefaults
from server.markup.formats import FORMATS, HERMES, CallFormat
from server.markup.parser import CallParser
from server.markup.tool_prompt import DEFAULT_TOOL_PROMPT
from server.prompt.conversation import TemplateForm
from server.prompt.model_files import ChatFiles
from server.prompt.plan import plan_chat
from server.prompt.plan_tools import plan_answer
from server.prompt.tokenizer import ChatTokenizer
from server.protocol.errors import ApiError
from server.protocol.request import parse_chat_request
from tests.places import SHARED
from tests.server.conftest import Load
from tests.server.prompt.test_plan import engine_info
from tests.server.prompt.test_tokenizer import reference
from tests.server.texts import needs_shared, shared_tokenizer_files

QUESTION = {"role": "user", "content": "Weather in Paris?"}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "<|im_end|>",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def calls(count: int) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": f"c{number}", "type": "function", "function": function} for number in range(count)],
    }


def results(count: int) -> list[dict[str, Any]]:
    return [{"role": "tool", "tool_call_id": f"c{number}", "content": f"{number} degrees"} for number in range(count)]


FORMS = {
    "qwen2_5/Qwen-Qwen2.5-7B-Instruct": ("hermes", True, True),
    "llama3_1/meta-llama-Llama-3.1-8B-Instruct": ("llama3", True, False),
    "llama3_1/meta-llama-Llama-3.3-70B-Instruct": ("llama3", True, False),
    "llama3_1/deepseek-ai-DeepSeek-R1-Distill-Llama-8B": ("deepseek", False, True),
    "qwen2_5/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": ("deepseek", False, True),
    "deepseek_v3": ("deepseek", False, True),
    "gemma2/google-gemma-2-2b-it": ("hermes", False, True),
    "llama3_1/microsoft-Phi-3.5-mini-instruct": ("hermes", False, True),
}


@needs_shared
@pytest.mark.parametrize("pair", FORMS)
def test_the_form_is_read_off_the_template(pair: str, shared_tokenizer: Load) -> None:
    form = shared_tokenizer(pair).prompts.tool_form
    assert (form.calls.name, form.by_template, form.many_calls) == FORMS[pair]


def test_models_yaml_overrules_the_template(smollm2_dir: Path) -> None:
    assert ChatTokenizer.load(smollm2_dir).prompts.tool_form.calls is HERMES
    for name, form in FORMATS.items():
        loaded = ChatTokenizer.load(smollm2_dir, tools=name)  # type: ignore[arg-type]
        assert loaded.prompts.tool_form.calls is form and not loaded.prompts.tool_form.by_template
    qwen_like = TemplateForm(tools=True, call_format=HERMES)
    assert qwen_like.tool_form(None).by_template and not qwen_like.tool_form("generic").by_template
    assert not TemplateForm(tools=True).tool_form(None).by_template, "calls of a form unknown here are asked for"


@needs_shared
@pytest.mark.parametrize("pair", [pair for pair, (_, by_template, _) in FORMS.items() if by_template])
def test_prompts_with_tools_equal_those_of_transformers(pair: str, shared_tokenizer: Load) -> None:
    name, _, template = pair.partition("/")
    theirs = reference(SHARED / "tokenizers" / name, (SHARED / "chat-templates" / f"{template}.jinja").read_text())
    ours = shared_tokenizer(pair)
    parsed = calls(1) | {"tool_calls": [calls(1)["tool_calls"][0] | {"function": {"name": "get_weather"}}]}
    parsed["tool_calls"][0]["function"]["arguments"] = {"city": "Paris"}
    talks = [([QUESTION], [QUESTION]), ([QUESTION, calls(1), *results(1)], [QUESTION, parsed, *results(1)])]
    for talk, as_theirs in talks:
        for tools in (None, [TOOL]):
            text = theirs.apply_chat_template(as_theirs, tools=tools, tokenize=False, add_generation_prompt=True)
            assert ours.prompts.write(talk, tools=tools).plain == text


@needs_shared
def test_a_template_that_describes_calls_in_double_braces_may_be_followed() -> None:
    """As Qwen2.5-Coder's does in some conversions."""
    tokenizer, files = shared_tokenizer_files("qwen2_5")
    template = (SHARED / "chat-templates" / "Qwen-Qwen2.5-7B-Instruct.jinja").read_text()
    words = '{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}'
    assert template.count(words) == 1
    slipped = template.replace(words, f"{{{words}}}")

    def form(source: str, **options: Any) -> CallFormat:
        chat_files = ChatFiles(special_tokens=files.special_tokens, templates={"default": source})
        return ChatTokenizer(tokenizer, chat_files, **options).prompts.tool_form.calls

    assert form(template) == form(template, tools="hermes") == HERMES
    assert form(slipped) == form(slipped, tools="hermes") == HERMES.doubling() != HERMES
    assert form(slipped).write("f", "{}") == HERMES.write("f", "{}"), "earlier calls are shown as they ought to be"


@needs_shared
@pytest.mark.parametrize("pair", FORMS)
@pytest.mark.parametrize("system", [False, True])
def test_tools_calls_and_results_reach_every_model(pair: str, system: bool, shared_tokenizer: Load) -> None:
    tokenizer = shared_tokenizer(pair)
    count = 2 if tokenizer.prompts.tool_form.many_calls else 1
    rules = [{"role": "system", "content": "Be brief."}] if system else []
    text = tokenizer.prompts.write(
        [*rules, QUESTION, calls(count), *results(count)], tools=[TOOL], tool_prompt="THESE:"
    ).plain
    for wanted in ["get_weather", '"city"', "THESE:", "Paris?", *(f"{number} degrees" for number in range(count))]:
        assert wanted in text
    assert DEFAULT_TOOL_PROMPT not in text and ("Be brief." in text) == system
    if system:
        before = text.index("THESE:") < text.index("Be brief.")
        by_template = tokenizer.prompts.tool_form.by_template
        assert before == by_template, "in front of the system text, or behind it with the tools"
    parser = CallParser(tokenizer.prompts.tool_form.calls, ["get_weather"])
    shown = text[text.index("Paris?") :]
    if tokenizer.prompts.tool_form.calls.bare:
        shown = shown[shown.index('{"name"') :]
    parser.push(shown)
    assert parser.num_calls == count, "the model is shown calls as it is to write them"
    ids = tokenizer.encode_prompt([*rules, QUESTION], tools=[TOOL])
    plain = tokenizer.encode_prompt(
        [*rules, QUESTION], tools=[{**TOOL, "function": TOOL["function"] | {"description": ""}}]
    )
    control = tokenizer.encode("<|im_end|>", allow_special=True)
    assert len(control) > 1 or ids.count(control[0]) == plain.count(control[0]), "descriptions hold no control tokens"


def test_the_default_model_is_told_in_words(smollm2_tokenizer: ChatTokenizer) -> None:
    text = smollm2_tokenizer.prompts.write([QUESTION, calls(2), *results(2)], tools=[TOOL]).plain
    system, _, rest = text.partition("<|im_end|>\n")
    assert system.startswith(f"<|im_start|>system\n{DEFAULT_TOOL_PROMPT}\n\n")
    assert system.endswith(HERMES.write("<function-name>", "<arguments-as-a-json-object>"))
    call = HERMES.write("get_weather", '{"city": "Paris"}')
    assert f"<|im_start|>assistant\n{call}\n{call}<|im_end|>\n" in rest
    answers = "\n".join(f"<tool_response>\n{number} degrees\n</tool_response>" for number in range(2))
    assert f"<|im_start|>user\n{answers}<|im_end|>\n<|im_start|>assistant\n" in rest


# ---- reasoning

OPENING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nOPEN{% endif %}"
)
TEMPLATES = {
    "opens": OPENING.replace("OPEN", "<think>\n"),
    "leaves": "{# the model writes </think> #}" + OPENING.replace("OPEN", ""),
    "switch": OPENING.replace("OPEN", "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"),
    "asked": OPENING.replace("OPEN", "{% if enable_thinking is true %}<think>\n{% endif %}"),
    "none": OPENING.replace("OPEN", ""),
}
CLOSED_TAIL = "</think>\n\n"


@pytest.fixture(scope="module")
def reasoners(smollm2_dir: Path) -> dict[str, ChatTokenizer]:
    from tokenizers import Tokenizer

    text = (smollm2_dir / "tokenizer.json").read_text()
    special = {"eos_token": "<|im_end|>"}
    return {
        name: ChatTokenizer(Tokenizer.from_str(text), ChatFiles(special_tokens=special, templates={"default": source}))
        for name, source in TEMPLATES.items()
    }


def planned(tokenizer: ChatTokenizer, **fields: Any) -> tuple[str, str, ReasoningBudget | None, Any]:
    """The state of reasoning at the beginning, the prompt's end, the budget, the constraint."""
    messages = [{"role": "user", "content": "Is <think> said?"}, *fields.pop("more", [])]
    request = parse_chat_request(json.dumps({"messages": messages, **fields}).encode())
    plan = plan_chat(request, tokenizer, engine_info(context=1000, num_blocks=200), SamplingDefaults())
    tail = tokenizer.decode(plan.prompt_token_ids, skip_special_tokens=False).rpartition("assistant\n")[2]
    return plan.reading.reasoning, tail, plan.params.reasoning_budget, plan.params.constraint


def test_the_state_of_reasoning_at_the_beginning(reasoners: dict[str, ChatTokenizer]) -> None:
    assert [reasoners[name].prompts.reasons for name in TEMPLATES] == [True, True, True, True, False]
    assert planned(reasoners["opens"])[:3] == ("open", "<think>\n", None)
    assert planned(reasoners["leaves"])[:3] == ("possible", "", None)
    assert planned(reasoners["switch"])[:3] == ("possible", "", None)
    assert planned(reasoners["switch"], chat_template_kwargs={"enable_thinking": False})[0] == "none"
    assert planned(reasoners["none"])[:3] == ("none", "", None)


def test_constrained_text_is_never_taken_for_reasoning(reasoners: dict[str, ChatTokenizer]) -> None:
    for fields in ({"response_format": {"type": "json_object"}}, {"tools": [TOOL], "tool_choice": "required"}):
        for name, state, after in (
            ("opens", "open", "</think>"),
            *((name, "none", "") for name in ("leaves", "asked", "none")),
        ):
            reasoning, _, _, constraint = planned(reasoners[name], **fields)
            assert (reasoning, constraint.after) == (state, after)
        assert planned(reasoners["switch"], **fields)[:2] == ("open", "<think>\n"), "reasoning is on, so it comes first"
        off = planned(reasoners["switch"], chat_template_kwargs={"enable_thinking": False}, **fields)
        assert off[0] == "none" and off[3].after == ""
    assert planned(reasoners["leaves"], tools=[TOOL])[0] == "possible"
    assert planned(reasoners["switch"], tools=[TOOL])[0] == "open", "what it says of calls is no call"
    assert planned(reasoners["none"], tools=[TOOL])[:2] == ("none", "")
    assert planned(reasoners["leaves"], tools=[TOOL], response_format={"type": "json_object"})[0] == "none"


@pytest.mark.parametrize("limit", [{"reasoning_effort": "low"}, {"max_reasoning_tokens": 1024}])
def test_a_limit_opens_what_is_not_open(limit: dict[str, Any], reasoners: dict[str, ChatTokenizer]) -> None:
    for name in ("opens", "leaves", "switch"):
        reasoning, tail, budget, _ = planned(reasoners[name], **limit)
        assert (reasoning, tail) == ("open", "<think>\n")
        assert budget is not None and (budget.max_tokens, budget.end) == (1024, "</think>")
        assert "</think>" in reasoners[name].decode(budget.end_token_ids)
    constraint = planned(reasoners["leaves"], response_format={"type": "json_object"}, **limit)[3]
    assert constraint.after == "</think>"


def test_no_reasoning_at_all(reasoners: dict[str, ChatTokenizer]) -> None:
    reasoning, tail, budget, _ = planned(reasoners["opens"], reasoning_effort="none")
    assert (reasoning, tail) == ("open", "<think>\n") and budget is not None and budget.max_tokens == 0
    for name in ("leaves", "switch"):
        reasoning, tail, budget, _ = planned(reasoners[name], reasoning_effort="none")
        assert reasoning == "none" and tail.endswith(CLOSED_TAIL) and budget is None
    assert planned(reasoners["none"], reasoning_effort="none")[:3] == ("none", "", None)


@pytest.mark.parametrize(
    ("name", "fields", "param"),
    [
        ("none", {"max_reasoning_tokens": 5}, "max_reasoning_tokens"),
        (
            "switch",
            {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}},
            "reasoning_effort",
        ),
    ],
)
def test_limits_that_mean_nothing_are_refused(
    name: str, fields: dict[str, Any], param: str, reasoners: dict[str, ChatTokenizer]
) -> None:
    with pytest.raises(ApiError) as caught:
        planned(reasoners[name], **fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_a_continued_answer(reasoners: dict[str, ChatTokenizer]) -> None:
    def state(text: str) -> str:
        more = [{"role": "assistant", "content": text}]
        return planned(reasoners["opens"], more=more, continue_final_message=True)[0]

    assert state("<think>so far") == "open"
    assert state("<think>done</think>The ans") == state("The ans") == "none"


@needs_shared
def test_special_marks_are_shown_to_the_parser_and_named_to_the_grammar() -> None:
    tokenizer, files = shared_tokenizer_files("llama3_1")
    template = (SHARED / "chat-templates" / "meta-llama-Llama-3.1-8B-Instruct.jinja").read_text()
    llama = ChatTokenizer(tokenizer, ChatFiles(special_tokens=files.special_tokens, templates={"default": template}))
    marks = llama.special_marks(llama.prompts.tool_form.calls.marks)
    request = parse_chat_request(json.dumps({"messages": [QUESTION], "tools": [TOOL]}).encode())
    plan = plan_answer(request, [1], llama)
    assert plan.reading.shown_ids == frozenset(marks.values())
    assert plan.constraint is not None
    for token_id in marks.values():
        assert f"<[{token_id}]>" in plan.constraint.source
