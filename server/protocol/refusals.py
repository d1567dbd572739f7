"""What the contract has and this server does not do: refused by name, in one table.

Nothing is accepted and then ignored. A field leaves this table in the commit that makes it work.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field

from server.protocol.errors import shorten, unsupported
from server.protocol.messages import Integer
from server.protocol.strict_model import StrictModel


class RefusedFields(StrictModel):
    """The fields of a chat request of which only the values that ask for nothing more are taken."""

    store: bool | None = None
    service_tier: Annotated[str, Field(max_length=32)] | None = None
    modalities: Annotated[list[Annotated[str, Field(max_length=32)]], Field(max_length=8)] | None = None
    audio: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    web_search_options: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None
    best_of: Annotated[Integer, Field(ge=1, le=2**31 - 1)] | None = None


Refusal = Callable[[RefusedFields], str | None]
"""Gives the words of the refusal, or None where the request does not ask for what is missing."""


def refuse_unsupported(request: RefusedFields) -> None:
    """Raise `ApiError` 400, naming the field, for the first thing asked for that is not done here."""
    for field, refusal in UNSUPPORTED.items():
        message = refusal(request)
        if message is not None:
            raise unsupported(field, message)


def _store(request: RefusedFields) -> str | None:
    return "store must be false: this server keeps no completions" if request.store else None


def _service_tier(request: RefusedFields) -> str | None:
    if request.service_tier in (None, "auto", "default"):
        return None
    return f"service_tier must be 'auto' or 'default', for there is one tier, got {shorten(request.service_tier)}"


def _modalities(request: RefusedFields) -> str | None:
    other = next((kind for kind in request.modalities or () if kind != "text"), None)
    return None if other is None else f"modalities must be ['text']: answers are text, got {shorten(other)}"


def _verbosity(request: RefusedFields) -> str | None:
    if request.verbosity in (None, "medium"):
        return None
    return f"verbosity must be 'medium': how long a model writes is said in its messages, got {request.verbosity!r}"


def _best_of(request: RefusedFields) -> str | None:
    best_of, n = request.best_of, getattr(request, "n", None) or 1
    if best_of in (None, n):
        return None
    return f"best_of ({best_of}) must be n ({n}): every choice that is computed is answered"


def _absent(field: str, why: str) -> Refusal:
    """Of a field that must be null."""
    return lambda request: None if getattr(request, field) is None else f"{field} is not supported: {why}"


UNSUPPORTED: Mapping[str, Refusal] = MappingProxyType(
    {
        "store": _store,
        "service_tier": _service_tier,
        "modalities": _modalities,
        "audio": _absent("audio", "answers are text"),
        "verbosity": _verbosity,
        "web_search_options": _absent("web_search_options", "this server searches nothing"),
        "moderation": _absent("moderation", "this server judges no content"),
        "best_of": _best_of,
    }
)
"""Field -> refusal, in the order of checking."""
