"""Fields that hint: they may help a server, and no answer depends on them, so all their values are taken.

`prompt_cache_key` keeps prompts of other keys out of a request's cached prefix; the others change nothing here.
"""

import hashlib
from typing import Annotated, Any, Literal

from pydantic import Field

from server.protocol.messages import Content
from server.protocol.strict_model import StrictModel

MAX_LABEL_CHARS = 512

Label = Annotated[str, Field(max_length=MAX_LABEL_CHARS)]


class Prediction(StrictModel):
    """A text that the answer will mostly repeat."""

    type: Literal["content"] = "content"
    content: Content


class HintFields(StrictModel):
    """The hints of a chat request, those of OpenAI's API first."""

    prompt_cache_key: Label | None = None
    prompt_cache_retention: Label | None = None
    prompt_cache_options: dict[str, Any] | None = None
    safety_identifier: Label | None = None
    prediction: Prediction | None = None
    cache_control: dict[str, Any] | None = None
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], Any], Field(max_length=16)] | None = None


def cache_salt(salt: bytes, key: str | None) -> bytes:
    """The salt of a tenant's cached prompts, or of those among them that a `prompt_cache_key` keeps together."""
    return hashlib.sha256(salt + b"\0" + key.encode()).digest()[:16] if key else salt
