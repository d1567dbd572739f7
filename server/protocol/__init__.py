"""The API contract: request models, what is refused, response shapes. Knows no HTTP and no model."""

from server.protocol.completion_request import CompletionRequest, parse_completion_request
from server.protocol.fields import FieldRow, completion_field_table, field_table
from server.protocol.generation_request import GenerationRequest, StreamOptions
from server.protocol.messages import ChatMessage, ContentPart, ToolCall
from server.protocol.prompts import Conversation
from server.protocol.request import ChatCompletionRequest, parse_chat_request
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
    "CompletionRequest",
    "ContentPart",
    "Conversation",
    "FieldRow",
    "FinishReason",
    "GenerationRequest",
    "StreamOptions",
    "ToolCall",
    "chat_completion",
    "completion_field_table",
    "field_table",
    "new_completion_id",
    "parse_chat_request",
    "parse_completion_request",
    "usage",
]
