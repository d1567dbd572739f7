"""The two kinds of prompt: a conversation for the chat template, and raw text or tokens."""

from typing import Annotated, Any, cast

from pydantic import Discriminator, Field, Tag

from server.protocol.errors import (
    BRANCH_ID_LISTS,
    BRANCH_IDS,
    BRANCH_LIST,
    BRANCH_TEXT,
    WRONG_BRANCH,
    bad_request,
)
from server.protocol.generation_request import TokenId
from server.protocol.json_values import check_json_value
from server.protocol.messages import ChatMessage
from server.protocol.parts import ImageRef
from server.protocol.strict_model import StrictModel

MAX_MESSAGES = 4096
MAX_PROMPTS = 256
"""Prompts of one request; also the most choices of all its prompts together."""


class Conversation(StrictModel):
    """The fields that make a conversation a prompt."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=32)] | None = None

    @property
    def images(self) -> list[ImageRef]:
        """The images of all messages, in order."""
        return [
            ImageRef(f"messages[{index}].content[{place}].image_url", part.image_url.url, part.image_url.detail)
            for index, message in enumerate(self.messages)
            if isinstance(message.content, list)
            for place, part in enumerate(message.content)
            if part.image_url is not None
        ]


def check_conversation(request: Conversation) -> None:
    """Raise `ApiError` 400 for fields wrong together, and for JSON beyond its bounds."""
    check_json_value(request.chat_template_kwargs, "chat_template_kwargs")
    if not request.continue_final_message:
        return
    if request.add_generation_prompt:
        raise bad_request(
            "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
        )
    if request.messages[-1].role != "assistant":
        raise bad_request(
            "continue_final_message needs a last message of role 'assistant', "
            f"got one of role '{request.messages[-1].role}'",
            param="continue_final_message",
        )


def _kind(value: Any) -> str | None:
    """The branch of `Prompts` that a value belongs to; the first entry of an array decides."""
    if isinstance(value, str):
        return BRANCH_TEXT
    if not isinstance(value, list):
        return None
    first = value[0] if value else ""
    for branch, kind in ((BRANCH_LIST, str), (BRANCH_ID_LISTS, list), (BRANCH_IDS, int)):
        if isinstance(first, kind) and not isinstance(first, bool):
            return branch
    return None


TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Prompts = Annotated[
    Annotated[str, Tag(BRANCH_TEXT)]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS), Tag(BRANCH_LIST)]
    | Annotated[TokenIds, Tag(BRANCH_IDS)]
    | Annotated[list[TokenIds], Field(max_length=MAX_PROMPTS), Tag(BRANCH_ID_LISTS)],
    Discriminator(
        _kind,
        custom_error_type=WRONG_BRANCH,
        custom_error_message="must be a string, an array of strings, an array of token ids, or an array of such arrays",
    ),
]


class RawPrompts(StrictModel):
    """The fields that make text or tokens prompts."""

    prompt: Prompts
    add_special_tokens: bool | None = None

    @property
    def prompts(self) -> list[tuple[str, str | list[int]]]:
        """Each prompt with its path in the request."""
        given = self.prompt
        if isinstance(given, str):
            return [("prompt", given)]
        if isinstance(given[0], int):
            return [("prompt", given)]
        return [(f"prompt[{index}]", cast("str | list[int]", one)) for index, one in enumerate(given)]
