"""What the text of an answer turns out to be, piece by piece."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ContentText:
    """Text of the answer proper; `at` is its place in the text that the parser was given."""

    text: str
    at: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class ReasoningText:
    """Text the model wrote for itself before it answered."""

    text: str


@dataclass(frozen=True, slots=True)
class CallOpened:
    """A tool call begins; `index` counts the calls of one answer from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of a call's arguments; together they are the JSON text exactly as the model wrote it."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallClosed:
    """The call's arguments are complete."""

    index: int


Event = ContentText | ReasoningText | CallOpened | CallArguments | CallClosed
