"""What an answer may hold beside content: a plan says it, and whoever reads the answer follows."""

from dataclasses import dataclass
from typing import Literal

from server.markup.formats import CallFormat


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How the text of an answer is to be taken apart."""

    reasoning: Literal["none", "possible", "open"] = "none"
    """`open`: it begins with reasoning; `possible`: it does if its first word is `<think>`."""
    exact: bool = False
    """The content is held to a constraint, so its white space stays where it is."""
    calls: CallFormat | None = None
    tool_names: tuple[str, ...] = ()
    recover: bool = True
    """JSON without the format's marker may be a call."""
    shown_ids: frozenset[int] = frozenset()
    """Special tokens that the parsers must see."""


CONTENT_ONLY = Reading()
