"""What the contract has and this server does not do yet: refused by name, in one table.

Nothing is accepted and then ignored. A field leaves this table in the commit that makes it work.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from server.errors import unsupported

if TYPE_CHECKING:
    from server.protocol.request import ChatCompletionRequest

Refusal = Callable[["ChatCompletionRequest"], str | None]
"""Gives the words of the refusal, or None where the request does not ask for what is missing."""


def refuse_unsupported(request: "ChatCompletionRequest") -> None:
    """Raise `ApiError` 400, naming the field, for the first thing asked for that is not done here."""
    for field, refusal in UNSUPPORTED.items():
        message = refusal(request)
        if message is not None:
            raise unsupported(field, message)
    _refuse_images(request)


def _refuse_images(request: "ChatCompletionRequest") -> None:
    for index, message in enumerate(request.messages):
        if isinstance(message.content, list):
            for part_index, part in enumerate(message.content):
                if part.type == "image_url":
                    raise unsupported(
                        f"messages[{index}].content[{part_index}]", "image_url parts are not supported: text only"
                    )


def _response_format(request: "ChatCompletionRequest") -> str | None:
    asked = request.response_format
    if asked is None or asked.type == "text":
        return None
    return f"response_format of type '{asked.type}' is not supported, only 'text'"


def _tools(request: "ChatCompletionRequest") -> str | None:
    return "tools are not supported; leave the field out or send an empty array" if request.tools else None


def _tool_choice(request: "ChatCompletionRequest") -> str | None:
    if request.tool_choice in (None, "none", "auto"):
        return None
    return "tool_choice asks for a tool call, and tools are not supported"


def _given(field: str) -> Refusal:
    def refusal(request: "ChatCompletionRequest") -> str | None:
        return f"{field} is not supported" if getattr(request, field) is not None else None

    return refusal


def _store(request: "ChatCompletionRequest") -> str | None:
    return "store must be false: this server keeps no completions" if request.store else None


def _service_tier(request: "ChatCompletionRequest") -> str | None:
    if request.service_tier in (None, "auto", "default"):
        return None
    return "service_tier must be 'auto' or 'default': there is one tier"


UNSUPPORTED: Mapping[str, Refusal] = MappingProxyType(
    {
        "response_format": _response_format,
        "tools": _tools,
        "tool_choice": _tool_choice,
        "tool_prompt": _given("tool_prompt"),
        "parallel_tool_calls": _given("parallel_tool_calls"),
        "reasoning_effort": _given("reasoning_effort"),
        "store": _store,
        "service_tier": _service_tier,
    }
)
"""Field -> refusal, in the order of checking. Image parts of `messages` are refused beside it."""
