"""Fits a conversation to what a model's chat template can show, and checks that it showed it.

Templates differ in what they accept: some have no system role, some want content as parts, some want a tool call's
arguments as an object and some as text; `server.prompt.template_probe` finds out what one wants. Tool turns that a
template has no form for become text, as `server.markup.tool_prompt` has it.
"""

import json
from dataclasses import dataclass
from typing import Any, Literal

from server.markup.formats import FORMATS, HERMES, CallFormat, ToolForm, ToolsSetting
from server.markup.tool_prompt import response_text
from server.prompt.chat_template import Verbatim
from server.prompt.control_tokens import unused_break
from server.protocol.errors import ApiError, bad_request
from server.protocol.json_values import check_json_value, read_json

Message = dict[str, Any]
Absent = Literal["absent", "null", "empty"]


@dataclass(frozen=True, slots=True)
class TemplateForm:
    """What one chat template wants."""

    system_role: bool = True
    """Without one, system text goes to the head of the next user turn, a blank line between."""
    developer_role: bool = False
    """Without one, `developer` is another name of `system`."""
    named_roles: frozenset[str] = frozenset()
    """Roles of which it shows a message's `name`."""
    content_parts: bool = False
    """Content must be an array of parts."""
    tool_role: bool = True
    tools: bool = False
    """It describes the tools it is given."""
    tool_calls: bool = True
    many_calls: bool = True
    """It shows several calls in one turn."""
    call_format: CallFormat | None = None
    """How it writes a call, if that is a form known here."""
    arguments_as_text: bool = False
    """A tool call's arguments must be JSON text, not an object."""
    arguments_verbatim: bool = False
    """It shows arguments that are no JSON as they are."""
    doubles_braces: bool = False
    """It describes a call in doubled braces, into which the model may slip."""
    no_content: Absent = "absent"
    """How a tool call without content is written."""

    def tool_form(self, setting: ToolsSetting | None) -> ToolForm:
        """How tools are handled; `setting` is what models.yaml says. A form unknown here is asked for as generic."""
        chosen = self.call_format if setting is None else FORMATS.get(setting)
        if chosen is None:
            return ToolForm(HERMES, by_template=False, many_calls=self.many_calls)
        chosen = chosen.doubling() if self.doubles_braces else chosen
        return ToolForm(chosen, by_template=self.tools, many_calls=self.many_calls)


def with_parsed_calls(messages: list[Message], form: TemplateForm) -> list[Message]:
    """The messages with the arguments of calls as the template wants them: what JSON had escaped is plain text then.

    Models err, and what a model wrote is part of the conversation: arguments that are no JSON of an object stay text.
    """
    return [
        {**message, "tool_calls": [_fit_call(call, form) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def fit(messages: list[Message], form: TemplateForm, call_format: CallFormat = HERMES) -> list[Message]:
    """The messages as the template wants them; `call_format` is that of calls in text where it shows none.

    The arguments of calls are as `with_parsed_calls` leaves them.
    """
    fitted: list[Message] = []
    pending: list[str] = []
    responds = False
    for message in messages:
        turn = _fit_turn(message, form, call_format)
        if turn["role"] == "tool" and not (form.tool_role and form.tool_calls):
            text = response_text(_text_of(turn))
            if responds:
                fitted[-1]["content"] += f"\n{text}"
                continue
            turn, responds = {"role": "user", "content": text}, True
        else:
            responds = False
        if turn["role"] == "system" and not form.system_role:
            pending.append(_text_of(turn))
            continue
        if turn["role"] == "user" and pending:
            turn["content"] = _behind(pending, turn["content"])
            pending = []
        fitted.append(turn)
    if pending:
        fitted.append({"role": "user", "content": "\n\n".join(pending)})
    return [with_parts(turn) for turn in fitted] if form.content_parts else fitted


def shows_images(message: Message) -> bool:
    """Whether images stand in a message, whose parts then stay as they are."""
    content = message.get("content")
    return isinstance(content, list) and any(part["type"] == "image" for part in content)


def _text_of(turn: Message) -> str:
    """The text of a turn that can only be shown as text. Raises `ApiError` 400 where images stand in it."""
    if shows_images(turn):
        raise bad_request(
            f"This model's chat template shows no images in a turn of role '{turn['role']}'", param="messages"
        )
    return str(turn.get("content", ""))


def _behind(texts: list[str], content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return "\n\n".join([*texts, content])
    return [{"type": "text", "text": "\n\n".join([*texts, ""])}, *content]


def _fit_turn(message: Message, form: TemplateForm, call_format: CallFormat) -> Message:
    turn = {key: value for key, value in message.items() if value is not None}
    if turn["role"] == "developer" and not form.developer_role:
        turn["role"] = "system"
    if "content" in turn and not shows_images(turn):
        turn["content"] = "\n".join(text_parts(turn["content"]))
    reasoning = turn.get("reasoning_content", turn.get("reasoning"))
    if reasoning is not None:
        # The names under which templates look for it.
        turn.update(reasoning_content=reasoning, reasoning=reasoning, thinking=reasoning)
    if not turn.get("tool_calls"):
        turn.pop("tool_calls", None)
        return turn
    is_verbatim = any(isinstance(call["function"]["arguments"], Verbatim) for call in turn["tool_calls"])
    if not form.tool_calls or (is_verbatim and not form.arguments_verbatim):
        calls = turn.pop("tool_calls")
        return turn | {"content": _with_written_calls(turn.get("content", ""), calls, call_format)}
    return without_content(turn, form.no_content)


def _with_written_calls(content: str, calls: list[dict[str, Any]], call_format: CallFormat) -> str:
    functions = [call["function"] for call in calls]
    written = [call_format.write(function["name"], _json_text(function["arguments"])) for function in functions]
    return "\n".join([content, *written] if content else written)


def with_system_text(messages: list[Message], text: str, *, in_front: bool) -> list[Message]:
    """The messages with more text in the first system message, before or behind what it says."""
    if messages[0]["role"] not in ("system", "developer"):
        return [{"role": "system", "content": text}, *messages]
    given = _text_of(messages[0]) if shows_images(messages[0]) else "\n".join(text_parts(messages[0].get("content")))
    parts = filter(None, (text, given) if in_front else (given, text))
    return [messages[0] | {"content": "\n\n".join(parts)}, *messages[1:]]


def _json_text(arguments: Any) -> str:
    return str(arguments) if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _fit_call(call: dict[str, Any], form: TemplateForm) -> dict[str, Any]:
    function = {key: value for key, value in call["function"].items() if value is not None}
    arguments = function.get("arguments", {})
    if form.arguments_as_text:
        function["arguments"] = _json_text(arguments)
    else:
        function["arguments"] = _parsed(arguments) if isinstance(arguments, str) else arguments
    return {"id": call["id"], "type": call.get("type") or "function", "function": function}


def _parsed(arguments: str) -> dict[str, Any] | Verbatim:
    """The object that the text is, or the text, as where it names a key twice."""
    try:
        parsed = read_json(arguments) if arguments.strip() else {}
        check_json_value(parsed, "arguments")
    except (ValueError, RecursionError, ApiError):
        return Verbatim(arguments)
    return parsed if isinstance(parsed, dict) else Verbatim(arguments)


def without_content(turn: Message, style: Absent) -> Message:
    """The turn, with no content written as `style` says if it has none."""
    if turn.get("content"):
        return turn
    bare = {key: value for key, value in turn.items() if key != "content"}
    return bare if style == "absent" else bare | {"content": None if style == "null" else ""}


def with_parts(turn: Message) -> Message:
    """The turn with its content as an array of parts."""
    content = turn.get("content")
    return turn | {"content": [{"type": "text", "text": content}]} if isinstance(content, str) else turn


def text_parts(content: str | list[dict[str, Any]] | None) -> list[str]:
    """The texts of a message's content."""
    if isinstance(content, list):
        return [part["text"] for part in content if "text" in part]
    return [] if content is None else [content]


def check_shown(messages: list[Message], rendered: str) -> None:
    """Refuse a conversation of which the template left something out, for it would be lost without a word.

    Assistant turns are exempt: templates drop reasoning from them on purpose.
    """
    end = 0
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            continue
        for text in map(str.strip, text_parts(message.get("content"))):
            found = _find_shown(text, rendered, end)
            if found is None:
                raise _not_shown(index, message["role"])
            end = found


def _find_shown(text: str, rendered: str, begin: int) -> int | None:
    """Where a text ends in what was rendered, None if it is not there.

    It is looked for from `begin` on first, the end of what was shown before it: thus all is read once.
    """
    place = rendered.find(text, begin)
    if place < 0:
        # Llama 3.1 writes a tool's answer as a JSON string.
        written = json.dumps(text, ensure_ascii=False)[1:-1]
        places = (rendered.find(text), rendered.find(written, begin), rendered.find(written))
        place = next((found for found in places if found >= 0), -1)
    return None if place < 0 else place + len(text)


def _not_shown(index: int, role: str) -> ApiError:
    return bad_request(
        f"The model's chat template does not show messages[{index}] (role '{role}') in this place",
        param=f"messages[{index}]",
    )


def mark_end(turns: list[Message], outside: list[Any], mark: str | None) -> str:
    """Put an end mark behind the last turn's text, and a space that shows whether the template trims it."""
    content = turns[-1].get("content")
    end = unused_break([outside, mark or ""])
    if isinstance(content, str):
        turns[-1]["content"] = f"{content}{end} "
    elif content and "text" in content[-1]:
        turns[-1]["content"] = [*content[:-1], content[-1] | {"text": f"{content[-1]['text']}{end} "}]
    else:
        raise bad_request(
            "continue_final_message needs text in the last message to continue", param="continue_final_message"
        )
    return end


def cut_at_end(text: str, end: str) -> str:
    """The rendered text up to the end mark. Raises `ApiError` 400 where the template does not show it."""
    head, found, tail = text.rpartition(end)
    if not found:
        raise bad_request(
            "The model's chat template does not show the last message, so it cannot be continued",
            param="continue_final_message",
        )
    # A template that trims content would have trimmed the white space before the end mark too.
    return head if tail.startswith(" ") else head.rstrip()
