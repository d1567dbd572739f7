"""What the contract has and this server does not do yet: refused by name, in one table.

Nothing is accepted and then ignored. A field leaves this table in the commit that makes it work.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated

from pydantic import Field

from server.protocol.errors import unsupported
from server.protocol.messages import StrictModel


class RefusedFields(StrictModel):
    """The fields of a chat request of which only the values that change nothing are taken."""

    store: bool | None = None
    service_tier: Annotated[str, Field(max_length=32)] | None = None


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
    return "service_tier must be 'auto' or 'default': there is one tier"


UNSUPPORTED: Mapping[str, Refusal] = MappingProxyType(
    {
        "store": _store,
        "service_tier": _service_tier,
    }
)
"""Field -> refusal, in the order of checking. Image parts are refused by `check_conversation`."""
