"""What answers to prompts look like, and errors, as models: for the description of the API, and for tests.

Tests hold real answers against them. Answers are not made of these: `response` encodes them directly, since a stream
is a hot path.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from server.protocol.response import FinishReason


class Shape(BaseModel):
    """Exactly these fields; one with a default may be absent."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class TopLogprobShape(Shape):
    """A token that could have come, with its log-probability and its bytes."""

    token: str
    logprob: float
    bytes: list[int]


class LogprobShape(TopLogprobShape):
    """A token that came, and the likeliest in its place."""

    top_logprobs: list[TopLogprobShape]


class LogprobsShape(Shape):
    """Log-probabilities of generated tokens, in order."""

    content: list[LogprobShape]
    refusal: None


class PromptDetailsShape(Shape):
    """Where the prompt's tokens came from."""

    cached_tokens: int
    image_tokens: int | None = None
    """Those that stand for images, where there are any."""


class CompletionDetailsShape(Shape):
    """What the answer's tokens were."""

    reasoning_tokens: int


class UsageShape(Shape):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetailsShape
    completion_tokens_details: CompletionDetailsShape | None = None


class CalledFunctionShape(Shape):
    """A function that the model calls, with its arguments as JSON."""

    name: str
    arguments: str


class CallShape(Shape):
    """A tool call."""

    id: str
    type: Literal["function"]
    function: CalledFunctionShape


class MessageShape(Shape):
    """An assistant's turn."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallShape] | None = None
    function_call: CalledFunctionShape | None = None


class ChoiceShape(Shape):
    """One finished answer."""

    index: int
    message: MessageShape
    logprobs: LogprobsShape | None
    finish_reason: FinishReason


class ChatCompletionShape(Shape):
    """An answer in one piece."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChoiceShape]
    usage: UsageShape


class FunctionDeltaShape(Shape):
    """The name of a called function, in its first piece, and more of its arguments."""

    name: str | None = None
    arguments: str


class CallDeltaShape(Shape):
    """New text of a tool call; id and type are those of its first piece."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDeltaShape


class DeltaShape(Shape):
    """New text of an assistant's turn; the first has the role."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallDeltaShape] | None = None
    function_call: FunctionDeltaShape | None = None


class ChunkChoiceShape(Shape):
    """What is new in one choice."""

    index: int
    delta: DeltaShape
    logprobs: LogprobsShape | None
    finish_reason: FinishReason | None


class ChatCompletionChunkShape(Shape):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoiceShape]
    usage: UsageShape | None = None


class TextLogprobsShape(Shape):
    """Log-probabilities of the legacy interface: an entry in each list for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoiceShape(Shape):
    """A continuation of a raw prompt, or what is new in it."""

    index: int
    text: str
    logprobs: TextLogprobsShape | None
    finish_reason: FinishReason | None


class TextCompletionShape(Shape):
    """Continuations of raw prompts, whole or in a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoiceShape]
    usage: UsageShape | None = None


class TokensShape(Shape):
    """Tokens of a prompt."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None
    special_positions: list[int] | None
    """Where in `tokens` the model's control tokens stand."""
    cached_tokens: int | None
    """How many of the first the prefix cache would spare a request now."""


class PromptTextShape(Shape):
    """Text of tokens."""

    prompt: str


class ErrorShape(Shape):
    """Why a request was refused or failed."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswerShape(Shape):
    """An error in OpenAI's shape."""

    error: ErrorShape
