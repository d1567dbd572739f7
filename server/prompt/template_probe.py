"""Finds out what a chat template wants, once, by rendering small conversations."""

import json
from collections.abc import Callable
from typing import Any

from server.markup.formats import detect, shows_double_braces
from server.prompt.chat_template import Verbatim
from server.prompt.conversation import Absent, Message, TemplateForm, with_parts, without_content
from server.protocol.errors import ApiError, bad_request

Render = Callable[[list[Message], list[dict[str, Any]] | None], str]
"""Renders messages, and tools if there are any."""


def probe(render: Render, source: str) -> TemplateForm:
    """Find out what a template wants. Raises `ApiError` where it cannot show even one user's turn."""
    question: Message = {"role": "user", "content": "probe-question"}
    parts_only = not _shows(render, [question], "probe-question")
    content_parts = parts_only and _shows(render, [with_parts(question)], "probe-question")
    if parts_only and not content_parts:
        render([question], None)  # raises the template's own complaint
        raise bad_request("the chat template does not show a user's message")

    def written(messages: list[Message], tools: list[dict[str, Any]] | None = None) -> str:
        try:
            return render([with_parts(m) for m in messages] if content_parts else messages, tools)
        except ApiError:
            return ""

    def shown(messages: list[Message], text: str) -> bool:
        return text in written(messages)

    call_style = _probe_tool_call(shown, question)
    arguments_as_text, no_content = call_style or (False, "absent")
    described = written([question], [_PROBE_TOOL])
    one, two = (_probe_turns(question, count, arguments_as_text, no_content) for count in (1, 2))
    return TemplateForm(
        system_role=shown([{"role": "system", "content": "probe-rule"}, question], "probe-rule"),
        developer_role="developer" in source,
        named_roles=frozenset(role for role in ("system", "user", "assistant") if shown(_named(role), "probe_name")),
        content_parts=content_parts,
        tool_role=shown([question, {"role": "tool", "content": "probe-answer"}], "probe-answer"),
        tools=_PROBE_PARAMETER in described,
        tool_calls=call_style is not None,
        many_calls=call_style is None or shown(two, "probe_value_1"),
        call_format=detect(written(one), "probe_name") if call_style is not None else None,
        arguments_as_text=arguments_as_text,
        arguments_verbatim=call_style is not None and shown(_verbatim(one), _BROKEN),
        doubles_braces=shows_double_braces(described),
        no_content=no_content,
    )


def _probe_tool_call(shown: Callable[[list[Message], str], bool], question: Message) -> tuple[bool, Absent] | None:
    """Whether arguments must be text, and how no content is written; None where no way shows a call."""
    styles: tuple[Absent, ...] = ("absent", "null", "empty")
    for as_text in (False, True):
        for style in styles:
            turns = _probe_turns(question, 1, as_text, style)
            # An object written as Python would, or text quoted twice, is not what the model was trained on.
            wrong = shown(turns, "'probe_key'") or shown(turns, '\\"probe_key')
            if shown(turns, "probe_value_0") and shown(turns, "probe_name") and not wrong:
                return as_text, style
    return None


def _probe_turns(question: Message, num_calls: int, as_text: bool, style: Absent) -> list[Message]:
    """A question, calls, and the answer to the first."""
    calls = []
    for number in range(num_calls):
        arguments: Any = {"probe_key": f"probe_value_{number}"}
        function = {"name": "probe_name", "arguments": json.dumps(arguments) if as_text else arguments}
        calls.append({"id": "a", "type": "function", "function": function})
    answer: Message = {"role": "tool", "tool_call_id": "a", "name": "probe_name", "content": "probe-answer"}
    return [question, without_content({"role": "assistant", "tool_calls": calls}, style), answer]


def _named(role: str) -> list[Message]:
    """A conversation in which the turn of this role has a name."""
    named: Message = {"role": role, "content": "probe-text", "name": "probe_name"}
    question: Message = {"role": "user", "content": "probe-question"}
    return {"system": [named, question], "user": [named], "assistant": [question, named]}[role]


_BROKEN = '{"probe_key": <'


def _verbatim(turns: list[Message]) -> list[Message]:
    """The turns with arguments that are no JSON."""
    question, called, *rest = turns
    calls = [call | {"function": call["function"] | {"arguments": Verbatim(_BROKEN)}} for call in called["tool_calls"]]
    return [question, called | {"tool_calls": calls}, *rest]


_PROBE_PARAMETER = "probe_parameter"
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "probe_name",
        "description": "probe-description",
        "parameters": {"type": "object", "properties": {_PROBE_PARAMETER: {"type": "string"}}},
    },
}


def _shows(render: Render, messages: list[Message], text: str) -> bool:
    try:
        return text in render(messages, None)
    except ApiError:
        return False
