"""OpenAI's older interface of functions, in earlier turns: they become tool calls and tool turns."""

from collections.abc import Sequence
from typing import Any

from server.protocol.messages import ChatMessage


def plain_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """The turns as chat templates know them.

    A `function_call` is a tool call without an id, and a turn of role `function` answers the last one of its name.
    """
    turns: list[dict[str, Any]] = []
    ids: dict[str, str] = {}
    for index, message in enumerate(messages):
        turn = message.plain()
        if message.function_call is not None:
            function = message.function_call.plain()
            ids[message.function_call.name] = call_id = f"call_{index}"
            turn["tool_calls"] = [{"id": call_id, "type": "function", "function": function}]
        elif message.role == "function":
            turn |= {"role": "tool", "tool_call_id": ids.get(message.name or "", f"call_{index}")}
        turns.append(turn)
    return turns
