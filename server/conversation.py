"""Fits a conversation to what a model's chat template can show, and checks that it showed it.

Templates differ in what they accept: some have no system role, some want content as parts, some want a tool call's
arguments as an object and some as text. What a template wants is found out once, by rendering small conversations.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from server.errors import ApiError, bad_request
from server.protocol.json_values import check_json_value

Message = dict[str, Any]
Render = Callable[[list[Message]], str]
Absent = Literal["absent", "null", "empty"]


@dataclass(frozen=True, slots=True)
class TemplateForm:
    """What one chat template wants."""

    system_role: bool = True
    """Without one, system text goes to the head of the next user turn, a blank line between."""
    developer_role: bool = False
    """Without one, `developer` is another name of `system`."""
    names: bool = True
    """A message's `name` is shown. A `tool` turn's name only repeats which call it answers."""
    content_parts: bool = False
    """Content must be an array of parts."""
    tool_role: bool = True
    tool_calls: bool = True
    arguments_as_text: bool = False
    """A tool call's arguments must be JSON text, not an object."""
    no_content: Absent = "absent"
    """How a tool call without content is written."""


def probe(render: Render, source: str) -> TemplateForm:
    """Find out what a template wants. Raises `ApiError` where it cannot show even one user's turn."""
    question: Message = {"role": "user", "content": "probe-question"}
    parts_only = not _shows(render, [question], "probe-question")
    content_parts = parts_only and _shows(render, [_with_parts(question)], "probe-question")
    if parts_only and not content_parts:
        render([question])  # raises the template's own complaint
        raise bad_request("the chat template does not show a user's message")

    def shown(messages: list[Message], text: str) -> bool:
        return _shows(render, [_with_parts(m) for m in messages] if content_parts else messages, text)

    call_style = _probe_tool_call(shown, question)
    arguments_as_text, no_content = call_style or (False, "absent")
    return TemplateForm(
        system_role=shown([{"role": "system", "content": "probe-rule"}, question], "probe-rule"),
        developer_role="developer" in source,
        names=shown([{**question, "name": "probe_name"}], "probe_name"),
        content_parts=content_parts,
        tool_role=shown([question, {"role": "tool", "content": "probe-answer"}], "probe-answer"),
        tool_calls=call_style is not None,
        arguments_as_text=arguments_as_text,
        no_content=no_content,
    )


def _probe_tool_call(shown: Callable[[list[Message], str], bool], question: Message) -> tuple[bool, Absent] | None:
    """Whether arguments must be text, and how no content is written; None where no way shows a call."""
    styles: tuple[Absent, ...] = ("absent", "null", "empty")
    for as_text in (False, True):
        for style in styles:
            arguments: Any = {"probe_key": "probe_value"}
            function = {"name": "probe_name", "arguments": json.dumps(arguments) if as_text else arguments}
            call: Message = {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": function}]}
            answer: Message = {"role": "tool", "tool_call_id": "a", "name": "probe_name", "content": "probe-answer"}
            turns = [question, _without_content(call, style), answer]
            # An object written as Python would, or text quoted twice, is not what the model was trained on.
            wrong = shown(turns, "'probe_key'") or shown(turns, '\\"probe_key')
            if shown(turns, "probe_value") and shown(turns, "probe_name") and not wrong:
                return as_text, style
    return None


def _shows(render: Render, messages: list[Message], text: str) -> bool:
    try:
        return text in render(messages)
    except ApiError:
        return False


def fit(messages: list[Message], form: TemplateForm) -> list[Message]:
    """The messages as the template wants them.

    Raises `ApiError` 400 for tool turns it does not know, and arguments that are not JSON.
    """
    fitted: list[Message] = []
    pending: list[str] = []
    for index, message in enumerate(messages):
        turn = _fit_turn(message, index, form)
        if turn["role"] == "system" and not form.system_role:
            pending.append(turn["content"])
            continue
        if turn["role"] == "user" and pending:
            turn["content"] = "\n\n".join([*pending, turn["content"]])
            pending = []
        fitted.append(turn)
    if pending:
        fitted.append({"role": "user", "content": "\n\n".join(pending)})
    return [_with_parts(turn) for turn in fitted] if form.content_parts else fitted


def _fit_turn(message: Message, index: int, form: TemplateForm) -> Message:
    turn = {key: value for key, value in message.items() if value is not None}
    if "name" in turn and turn["role"] != "tool" and not form.names:
        raise bad_request("This model's chat template shows no names of speakers", param=f"messages[{index}].name")
    if turn["role"] == "tool" and not form.tool_role:
        raise _not_shown(index, "tool")
    if turn["role"] == "developer" and not form.developer_role:
        turn["role"] = "system"
    if "content" in turn:
        turn["content"] = "\n".join(text_parts(turn["content"]))
    reasoning = turn.get("reasoning_content", turn.get("reasoning"))
    if reasoning is not None:
        # The names under which templates look for it.
        turn.update(reasoning_content=reasoning, reasoning=reasoning, thinking=reasoning)
    calls = turn.pop("tool_calls", None)
    if calls:
        if not form.tool_calls:
            raise bad_request(
                "The model's chat template does not show tool calls", param=f"messages[{index}].tool_calls"
            )
        turn["tool_calls"] = [
            _fit_call(call, f"messages[{index}].tool_calls[{number}]", form) for number, call in enumerate(calls)
        ]
        turn = _without_content(turn, form.no_content)
    return turn


def _fit_call(call: dict[str, Any], param: str, form: TemplateForm) -> dict[str, Any]:
    function = {key: value for key, value in call["function"].items() if value is not None}
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            parsed = None
        if not isinstance(parsed, dict):
            raise bad_request(f"{param}.function.arguments must be JSON of an object", param=param)
        check_json_value(parsed, f"{param}.function.arguments")
        function["arguments"] = arguments if form.arguments_as_text else parsed
    elif form.arguments_as_text:
        function["arguments"] = json.dumps(arguments, ensure_ascii=False)
    else:
        function["arguments"] = arguments
    return {"id": call["id"], "type": call.get("type") or "function", "function": function}


def _without_content(turn: Message, style: Absent) -> Message:
    if turn.get("content"):
        return turn
    bare = {key: value for key, value in turn.items() if key != "content"}
    return bare if style == "absent" else bare | {"content": None if style == "null" else ""}


def _with_parts(turn: Message) -> Message:
    content = turn.get("content")
    return turn | {"content": [{"type": "text", "text": content}]} if isinstance(content, str) else turn


def text_parts(content: str | list[dict[str, Any]] | None) -> list[str]:
    """The texts of a message's content."""
    if isinstance(content, list):
        return [part["text"] for part in content]
    return [] if content is None else [content]


def check_shown(messages: list[Message], rendered: str) -> None:
    """Refuse a conversation of which the template left something out, for it would be lost without a word.

    Assistant turns are exempt: templates drop reasoning from them on purpose.
    """
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            continue
        for text in map(str.strip, text_parts(message.get("content"))):
            # Llama 3.1 writes a tool's answer as a JSON string.
            if text not in rendered and json.dumps(text, ensure_ascii=False)[1:-1] not in rendered:
                raise _not_shown(index, message["role"])


def _not_shown(index: int, role: str) -> ApiError:
    return bad_request(
        f"The model's chat template does not show messages[{index}] (role '{role}') in this place",
        param=f"messages[{index}]",
    )
