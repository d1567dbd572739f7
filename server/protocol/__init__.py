"""The API contract: request models, what is refused, response shapes. Knows no HTTP and no model."""

from server.protocol.fields import FieldRow, field_table
from server.protocol.messages import ChatMessage, ContentPart, ToolCall
from server.protocol.request import ChatCompletionRequest, StreamOptions, parse_chat_request
from server.protocol.response import (
    Choice,
    ChunkEncoder,
    FinishReason,
    chat_completion,
    new_completion_id,
    usage,
)

__all__ = [
    "ChatCompletionRequest",
    "ChatMessage",
    "Choice",
    "ChunkEncoder",
    "ContentPart",
    "FieldRow",
    "FinishReason",
    "StreamOptions",
    "ToolCall",
    "chat_completion",
    "field_table",
    "new_completion_id",
    "parse_chat_request",
    "usage",
]
