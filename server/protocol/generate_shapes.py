"""What the answers of POST /generate and its relatives look like, for the description of the API."""

from typing import Literal

from pydantic import RootModel

from server.protocol.shapes import Shape


class GeneratedTokenShape(Shape):
    """A token and what it adds to the text; a control token, which is not shown, is special."""

    id: int
    text: str
    logprob: float
    special: bool


class GeneratedCountsShape(Shape):
    """How a text ended, and counts."""

    finish_reason: Literal["length", "eos_token", "stop_sequence"]
    generated_tokens: int
    seed: int | None
    input_length: int


class GeneratedDetailsShape(GeneratedCountsShape):
    """The same of a text that is answered whole, with its tokens."""

    prefill: list[GeneratedTokenShape]
    tokens: list[GeneratedTokenShape]


class GeneratedShape(Shape):
    """What follows a prompt."""

    generated_text: str
    details: GeneratedDetailsShape | None = None


class GeneratedArrayShape(RootModel[list[GeneratedShape]]):
    """The same in an array of one."""


class GeneratedEventShape(Shape):
    """One token of a stream; the last has the whole text."""

    index: int
    token: GeneratedTokenShape
    generated_text: str | None
    details: GeneratedCountsShape | None
