"""The parts that the content of a message may be made of.

Chat completions have `text`, `image_url` and `refusal`. The others stand in histories that agents carry over from other
interfaces: OpenAI's Responses (`input_text`, `output_text`), and what models thought, as Anthropic's, Mistral's and
LangChain's messages have it (`thinking`, `redacted_thinking`, `reasoning`).
"""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, model_validator

from server.protocol.strict_model import StrictModel


class ImageUrl(StrictModel):
    """Where an image is: an http(s) or data URL."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image of a conversation: where it stands in the request, and what it is."""

    param: str
    url: str
    detail: Literal["auto", "low", "high"] | None = None


CacheHint = dict[str, Any] | None
"""Where other servers should cache a prompt; here every prefix is cached, so it changes nothing."""

PartType = Literal[
    "text", "image_url", "refusal", "input_text", "output_text", "thinking", "redacted_thinking", "reasoning"
]
_HOLDERS: dict[PartType, tuple[str, ...]] = {
    "text": ("text",),
    "image_url": ("image_url",),
    "refusal": ("refusal",),
    "input_text": ("text",),
    "output_text": ("text",),
    "thinking": ("thinking",),
    "redacted_thinking": ("data",),
    "reasoning": ("reasoning", "text", "summary"),
}
"""The fields that may hold what a part of each type is about; one of them does."""
_FIELDS = tuple(dict.fromkeys(name for names in _HOLDERS.values() for name in names))
_THOUGHTS = ("thinking", "redacted_thinking", "reasoning")


class ThoughtText(StrictModel):
    """A piece of what a model thought."""

    type: Literal["text", "summary_text", "reasoning_text"] = "text"
    text: str


class ContentPart(StrictModel):
    """A piece of a message, whichever `type` says."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"type": {"const": kind}, name: {"not": {"type": "null"}}}, "required": [name]}
                for kind, names in _HOLDERS.items()
                for name in names
            ]
        }
    )

    type: PartType
    text: str | None = None
    image_url: ImageUrl | None = None
    refusal: str | None = None
    thinking: str | list[ThoughtText] | None = None
    reasoning: str | None = None
    summary: list[ThoughtText] | None = None
    data: str | None = None
    cache_control: CacheHint = None
    prompt_cache_breakpoint: CacheHint = None
    # What follows stands in parts that clients send back; a conversation is the same without it.
    id: str | None = None
    index: int | str | None = None
    annotations: list[Any] | None = None
    signature: str | None = None
    closed: bool | None = None
    extras: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _has_what_type_says(self) -> "ContentPart":
        names = _HOLDERS[self.type]
        if all(getattr(self, name) is None for name in names):
            raise ValueError(f"of type '{self.type}' must have the field '{names[0]}'")
        for other in _FIELDS:
            if other not in names and getattr(self, other) is not None:
                raise ValueError(f"of type '{self.type}' must not have the field '{other}'")
        return self

    @property
    def is_thought(self) -> bool:
        """Whether the part is what a model thought rather than what it said."""
        return self.type in _THOUGHTS

    @property
    def words(self) -> str:
        """The text of the part; nothing of an image, nor of thoughts that came encrypted."""
        if isinstance(self.thinking, list):
            return "".join(piece.text for piece in self.thinking)
        given = (self.text, self.refusal, self.thinking, self.reasoning)
        return next((text for text in given if text), "\n".join(piece.text for piece in self.summary or ()))

    def plain(self) -> dict[str, Any]:
        """The part as chat templates know it; what an assistant refused with is text as any other."""
        return {"type": "image"} if self.image_url is not None else {"type": "text", "text": self.words}
