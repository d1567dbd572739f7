"""Parts the reasoning of a model from its answer.

Whether reasoning is open when the answer begins is read off the end of the rendered prompt, for some templates write
`<think>` themselves and some leave it to the model. White space around reasoning belongs to nobody.
"""

from collections.abc import Mapping
from enum import Enum, auto
from types import MappingProxyType

from server.markup.frames import GAP, Match, Undecided, match

THINK, END_THINK = "<think>", "</think>"
CLOSED = "\n</think>\n\n"
"""How reasoning is ended by force: as models end it themselves."""
SPACE = " \t\r\n"

EFFORT_TOKENS: Mapping[str, int] = MappingProxyType(
    {"none": 0, "minimal": 256, "low": 1024, "medium": 4096, "high": 16384, "xhigh": 32768}
)
"""`reasoning_effort`: so many tokens of reasoning at most."""


def opens_reasoning(prompt: str) -> bool:
    """Whether a rendered prompt ends with open reasoning."""
    return prompt.rstrip(SPACE).endswith(THINK)


def closes_reasoning(prompt: str) -> bool:
    """Whether a rendered prompt ends with reasoning that is over."""
    return prompt.rstrip(SPACE).endswith(END_THINK)


def leaves_open(text: str) -> bool:
    """Whether an assistant's text that is to be continued ends within reasoning."""
    return text.rfind(THINK) > text.rfind(END_THINK)


class _State(Enum):
    UNDECIDED = auto()
    OPEN = auto()
    ANSWER = auto()


class ReasoningParser:
    """Splits one answer, whatever the pieces it comes in, in linear time."""

    def __init__(self, *, is_open: bool) -> None:
        """Without `is_open` reasoning may still begin with the answer's first characters, if these are `<think>`."""
        self.opened_itself = False
        """Whether the answer's own text began the reasoning."""
        self.was_open = is_open
        """Whether there was reasoning."""
        self._state = _State.OPEN if is_open else _State.UNDECIDED
        self._held = ""
        self._space: list[str] = []
        self._began = False

    @property
    def is_reasoning(self) -> bool:
        """Whether what comes next is reasoning, as far as is known."""
        return self._state is _State.OPEN

    @property
    def in_answer(self) -> bool:
        """Whether all that comes next belongs to the answer."""
        return self._state is _State.ANSWER

    def push(self, text: str) -> tuple[str, str]:
        """The reasoning and the answer's text that are certain once `text` has come."""
        if self._state is _State.ANSWER:
            return "", text
        data = self._held + text
        self._held = ""
        if self._state is _State.UNDECIDED:
            found = match((GAP, THINK), data, 0)
            if found is Undecided.MORE:
                self._held = data
                return "", ""
            if not isinstance(found, Match):
                self._state = _State.ANSWER
                return "", data
            self._state = _State.OPEN
            self.opened_itself = self.was_open = True
            data = data[found.end :]
        return self._push_open(data)

    def finish(self, *, cut: bool = False) -> tuple[str, str]:
        """What was held back, once no more text will come; of an answer that was `cut`, half a mark is nothing."""
        held, self._held = "" if cut else self._held, ""
        return (self._reasoning(held), "") if self._state is _State.OPEN else ("", held)

    def _push_open(self, data: str) -> tuple[str, str]:
        end = data.find(END_THINK)
        if end >= 0:
            self._state = _State.ANSWER
            return self._reasoning(data[:end]), data[end + len(END_THINK) :]
        held = next((n for n in range(len(END_THINK) - 1, 0, -1) if data.endswith(END_THINK[:n])), 0)
        self._held = data[len(data) - held :]
        return self._reasoning(data[: len(data) - held]), ""

    def _reasoning(self, text: str) -> str:
        """The text without white space at the whole reasoning's ends; that at its present end waits."""
        solid = text.rstrip(SPACE)
        shown = ""
        if solid:
            shown = "".join(self._space) + solid if self._began else solid.lstrip(SPACE)
            self._began = True
            self._space.clear()
        if self._began and len(solid) < len(text):
            self._space.append(text[len(solid) :])
        return shown
