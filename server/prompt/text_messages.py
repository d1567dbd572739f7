"""What crosses between the API process and the processes that work on long texts: fixed types, nothing executed.

A request takes two questions, since only its body says for which model it is: `ReadBody` with the body behind it as a
frame of its own, answered by `BodyRead`; then `MakePrompts`, answered by a `PromptMade` for each prompt and an
`Answered`. In the place of any answer `Failed` may come.
"""

from typing import Literal

import msgspec

from engine.messages import EngineInfo
from server.config.sampling_defaults import SamplingDefaults
from server.markup.formats import ToolsSetting
from server.prompt.plan import PromptPlan
from server.protocol.errors import ApiError
from server.protocol.parts import ImageRef

TextRoute = Literal["chat", "completion", "generate", "generate_stream", "generate_either", "tokenize", "detokenize"]


class ReadBody(msgspec.Struct, tag="read", frozen=True):
    """Read and check the body of a request, which is the next frame."""

    route: TextRoute
    ignore_unknown: bool = False
    """Fields that do not exist are ignored rather than refused."""


class BodyRead(msgspec.Struct, tag="body_read", frozen=True):
    """A body that holds a request."""

    model: str | None
    """The model that it names."""
    num_choices: int
    is_stream: bool = False
    """Whether it asks for its answer as a stream."""
    images: list[ImageRef] = []
    """The images of its conversation, in order."""
    timeout: float | None = None
    """The seconds that it gives itself."""
    answer_tokens: int = 0
    """What its answers may take together at the least."""


class MakePrompts(msgspec.Struct, tag="make", frozen=True):
    """Do for the request that was read last what its route does with text, with this model."""

    info: EngineInfo
    defaults: SamplingDefaults
    tools: ToolsSetting | None = None
    image_tokens: list[list[int]] = []
    """What stands in the prompt for each image."""


class PromptMade(msgspec.Struct, tag="prompt", frozen=True):
    """One prompt of the request, ready to be submitted."""

    plan: PromptPlan


class AskedPrompt(msgspec.Struct, frozen=True):
    """A prompt of which the engine is to say how much its prefix cache holds."""

    token_ids: list[int]
    images: list[tuple[int, int]] = []
    """Where in it images are: the first token, and how many."""
    cache_key: str | None = None


class Answered(msgspec.Struct, tag="answered", frozen=True):
    """The work is done; `content` is the JSON of an answer that needs nothing but text work."""

    content: bytes = b""
    unused: list[str] = []
    """JSON pointers of what such a request holds that is not used; plans have their own."""
    prompt: AskedPrompt | None = None
    """What the answer lacks that only the engine knows: `cached_tokens` of this prompt."""


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """The request ends with this `ApiError`."""

    status: int
    message: str
    kind: str
    param: str | None
    code: str | None
    headers: dict[str, str]

    @classmethod
    def of(cls, error: ApiError) -> "Failed":
        """An error as it crosses."""
        return cls(error.status, error.message, error.type, error.param, error.code, error.headers)

    def error(self) -> ApiError:
        """The error as it was raised."""
        return ApiError(
            self.status, self.message, type=self.kind, param=self.param, code=self.code, headers=self.headers
        )


Question = ReadBody | MakePrompts
Reply = BodyRead | PromptMade | Answered | Failed

_questions: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def decode_question(frame: bytes) -> Question:
    """A frame on its way to the process. Raises `msgspec.DecodeError`."""
    return _questions.decode(frame)


def decode_reply(frame: bytes) -> Reply:
    """A frame on its way back. Raises `msgspec.DecodeError`."""
    return _replies.decode(frame)
