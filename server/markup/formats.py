"""The forms in which models write tool calls.

A format is found out from what a chat template writes of a call, never from a model's name. Whatever its format, a
model may also write a call as bare JSON at the beginning, or in a fence, as Qwen2.5-Coder does:

    {"name": "get_weather", "arguments": {"city": "Paris"}}

That is a call if it names a declared tool; any other JSON is text.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

from server.markup.frames import GAP, Frame, OneOf

FormatName = Literal["hermes", "llama3", "deepseek"]
ToolsSetting = Literal["hermes", "llama3", "deepseek", "generic"]
"""What models.yaml may say of a model: its format, or Hermes calls that are asked for in the system text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallFormat:
    """How calls are written: `begin`, then calls with `marker` in front of each, then `end`."""

    name: FormatName
    marker: str
    """What opens a call wherever it stands. In a tokenizer it may be a token, special or not."""
    bare: bool = False
    """The marker may be missing where an answer consists of calls."""
    begin: str = ""
    end: str = ""
    head: Frame
    """Between the marker and the name."""
    neck: Frame
    """Between the name and the arguments."""
    tail: Frame
    """Behind the arguments."""
    pattern: tuple[str, str, str]
    """A call as models are shown it: text before the name, between name and arguments, and behind them."""
    may_double: bool = False
    """The braces around a call may be doubled, as they are in the template's own words; see `doubling`."""

    def write(self, name: str, arguments: str) -> str:
        """One call, as the model itself would write it. `arguments` is JSON text."""
        before, between, behind = self.pattern
        return f"{self.begin}{before}{name}{between}{arguments}{behind}{self.end}"

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that may be single tokens and must be seen by the parser."""
        return tuple(filter(None, (self.marker, self.begin, self.end)))

    @property
    def bare_head(self) -> Frame:
        """What stands before the name of a call in JSON without its marker."""
        return _doubled(BARE_HEAD) if self.may_double else BARE_HEAD

    @property
    def bare_tail(self) -> Frame:
        """What stands behind the arguments of such a call."""
        return _doubled(BARE_TAIL) if self.may_double else BARE_TAIL

    @property
    def fenced_head(self) -> Frame:
        """What stands before the name of such a call in a fence."""
        return (FENCE_MARK, OneOf(("json", "")), *self.bare_head)

    def doubling(self) -> "CallFormat":
        """The form as models slip into it whose template describes a call as `{{"name": ...}}`.

        So did Qwen2.5-Coder's, written for a language in which that stands for single braces; conversions to GGUF
        still carry it.
        """
        return replace(self, head=_doubled(self.head), tail=_doubled(self.tail), may_double=True)


def _doubled(frame: Frame) -> Frame:
    return tuple(OneOf((2 * piece, piece)) if piece in ("{", "}") else piece for piece in frame)


_JSON_HEAD: Frame = (GAP, "{", GAP, '"name"', GAP, ":", GAP, '"')


def _json_neck(*keys: str) -> Frame:
    return ('"', GAP, ",", GAP, OneOf(tuple(f'"{key}"' for key in keys)), GAP, ":", GAP)


HERMES = CallFormat(
    name="hermes",
    marker="<tool_call>",
    head=_JSON_HEAD,
    neck=_json_neck("arguments"),
    tail=(GAP, "}", GAP, "</tool_call>"),
    pattern=('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>"),
)
LLAMA3 = CallFormat(
    name="llama3",
    marker="<|python_tag|>",
    bare=True,
    head=_JSON_HEAD,
    neck=_json_neck("parameters"),
    tail=(GAP, "}"),
    pattern=('{"name": "', '", "parameters": ', "}"),
)
DEEPSEEK = CallFormat(
    name="deepseek",
    marker="<｜tool▁call▁begin｜>",  # noqa: RUF001, the bars are fullwidth
    begin="<｜tool▁calls▁begin｜>",  # noqa: RUF001
    end="<｜tool▁calls▁end｜>",  # noqa: RUF001
    head=(GAP, "function<｜tool▁sep｜>"),  # noqa: RUF001
    neck=("\n```json\n", GAP),
    tail=(GAP, "```", GAP, "<｜tool▁call▁end｜>"),  # noqa: RUF001
    pattern=(
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",  # noqa: RUF001
        "\n```json\n",
        "\n```<｜tool▁call▁end｜>",  # noqa: RUF001
    ),
)
FORMATS: dict[str, CallFormat] = {form.name: form for form in (HERMES, LLAMA3, DEEPSEEK)}

BARE_HEAD = _JSON_HEAD
FENCE_MARK = "```"
BARE_NECK = _json_neck("arguments", "parameters")
BARE_TAIL: Frame = (GAP, "}")
FENCE_END: Frame = (GAP, FENCE_MARK)


@dataclass(frozen=True, slots=True)
class ToolForm:
    """How one model is told of tools, and how it calls them."""

    calls: CallFormat = HERMES
    by_template: bool = False
    """The chat template describes tools; else the system text does."""
    many_calls: bool = True
    """The chat template can show several calls of one turn."""


def detect(written: str, name: str) -> CallFormat | None:
    """The format of a rendered conversation in which the assistant calls the function `name`; None if none is known."""
    before, found, after = written.partition(name)
    if not found:
        return None
    if DEEPSEEK.marker in before:
        return DEEPSEEK
    if HERMES.marker in before:
        return HERMES
    bare = before.rstrip().endswith('"name": "') and after.startswith('", "parameters": ')
    return LLAMA3 if bare else None


def shows_double_braces(described: str) -> bool:
    """Whether a rendered prompt with tools describes a call in doubled braces."""
    return _DOUBLE.search(described) is not None


_DOUBLE = re.compile(r'\{\{\s{0,4}"name"\s{0,4}:')
