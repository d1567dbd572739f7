"""Grammars under which a tool call that is opened is a valid one.

What is required begins with calls and holds nothing else. With `auto` text is free until the model opens a call: by the
format's marker wherever it stands, or by JSON, at the beginning or in a fence, that gives the name of a declared tool.
From there the tool's schema holds; behind the call text is free again. Free text costs next to nothing: its states
allow nearly every token, and there are few of them.

Whether JSON is a call shows only behind the name. So a head `{"name": "` ends one terminal, a declared name with what
follows it is the next, and text that is none of these goes on in terminals that exclude them (those with an X).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.constraint import Constraint, PatternSource, SchemaSource
from server.markup.formats import BARE_NECK, CallFormat
from server.markup.frames import GAP_REGEX, escape, regex

ANY = r"[\s\S]*"


@dataclass(frozen=True, slots=True)
class ToolSchema:
    """A declared tool, as far as a grammar needs it."""

    name: str
    schema: str
    """JSON Schema of the arguments, of type object, as JSON text."""
    param: str
    """The field of the request that an error in the schema blames."""
    strict: bool = True
    """Whether what cannot be followed of the schema is refused."""


def required_calls(
    form: CallFormat, tools: Sequence[ToolSchema], special: Mapping[str, int], *, parallel: bool
) -> Constraint:
    """Calls of these tools and nothing else: one, or with `parallel` one or more.

    `special` has the ids of those marks of the format that are special tokens of the tokenizer.
    """
    builder = _Builder(form, tools, special)
    builder.add("start", builder.calls(parallel, bare=form.bare))
    return builder.constraint()


def free_calls(
    form: CallFormat, tools: Sequence[ToolSchema], special: Mapping[str, int], *, parallel: bool
) -> Constraint:
    """Free text with any number of calls in it; without `parallel` the answer ends with the first."""
    builder = _Builder(form, tools, special)
    builder.add("start", "segment* last" if parallel else f"segment {builder.end()} | last")
    builder.add_free_text()
    return builder.constraint(is_free=True)


def calls_or(
    content: Constraint, form: CallFormat, tools: Sequence[ToolSchema], special: Mapping[str, int], *, parallel: bool
) -> Constraint:
    """Either calls, each opened by its marker, or a text that `content` describes."""
    builder = _Builder(form, tools, special)
    builder.add("start", f"{builder.calls(parallel, bare=False)} | content")
    builder.add_content(content)
    return builder.constraint()


class _Builder:
    """Collects rules. The tools' schemas are `schema_0` and on; the rules `native` and `named` are of every grammar."""

    def __init__(self, form: CallFormat, tools: Sequence[ToolSchema], special: Mapping[str, int]) -> None:
        self._form = form
        self._tools = tools
        self._special = special
        self._rules: list[str] = []
        self._patterns: list[PatternSource] = []
        self._schemas = [SchemaSource(param=tool.param, schema=tool.schema, strict=tool.strict) for tool in tools]

    def add(self, name: str, body: str) -> None:
        """A rule, or a terminal if its name is in capitals."""
        self._rules.append(f"{name}: {body}")

    def constraint(self, *, is_free: bool = False) -> Constraint:
        """All that was added; free if there may be any text besides calls."""
        self.add("gap", f"/{GAP_REGEX}/")
        names = "|".join(escape(tool.name) for tool in self._tools)
        opens = f"(?:{names})(?:{regex(self._form.neck)}|{regex(BARE_NECK)})" if is_free else ""
        return Constraint(
            kind="lark",
            source="\n".join(self._rules),
            param="tools",
            schemas=tuple(self._schemas),
            patterns=tuple(self._patterns),
            opens=opens,
        )

    def calls(self, parallel: bool, *, bare: bool) -> str:
        """The body of a rule of one or more calls; with `bare` they may come without their marker."""
        form = self._form
        self._add_native(form)
        call = f"gap {self._mark(form.marker)} native"
        self.add("call", f"{call} | native" if bare else call)
        begin = f"gap {self._mark(form.begin)}" if form.begin else ""
        return f"{begin} call {'call*' if parallel else ''} {self.end()}"

    def end(self) -> str:
        """What may stand behind the last call."""
        return f"(gap {self._mark(self._form.end)})?" if self._form.end else ""

    def add_content(self, content: Constraint) -> None:
        """The rule `content`."""
        marker = escape(self._form.marker)
        match content.kind:
            case "json_schema":
                self.add("content", f"schema_{len(self._schemas)}")
                self._schemas.append(SchemaSource(param=content.param, schema=content.source, strict=content.strict))
            case "regex":
                self.add("content", "CONTENT")
                self.add("CONTENT", f"PATTERN_0 & ~/{marker}{ANY}/")
                self._patterns.append(PatternSource(param=content.param, pattern=content.source))
            case "lark":
                self.add("content", f"%lark {{\n{content.source}\n}}")

    def add_free_text(self) -> None:
        """The rules `segment` (text up to and with a call) and `last` (text without one)."""
        form = self._form
        self._add_native(form)
        names = "|".join(escape(tool.name) for tool in self._tools)
        heads = f"{regex(form.bare_head)}|{ANY}{regex(form.fenced_head)}"
        fence = f"{ANY}{regex(form.fenced_head)}"
        called = f"({names}){regex(BARE_NECK)}{ANY}"
        tag = f"{ANY}{escape(form.marker)}"
        self.add("segment", "tag native | json doubtful")
        self.add("doubtful", "named | json_x doubtful | tag_x native")
        self.add("last", "TEXT | json last_x")
        self.add("last_x", "TEXT_X | json_x last_x")
        is_special = form.marker in self._special
        # A special marker's spelling in plain text opens nothing, so it must not come.
        unspelt = f" & ~/{tag}{ANY}/" if is_special else ""
        self.add("json[lazy]", "JSON")
        self.add("JSON", f"/{heads}/{unspelt}")
        self.add("json_x[lazy]", "JSON_X")
        self.add("JSON_X", f"/{fence}/ & ~/{called}/{unspelt}")
        self.add("TEXT", f"/{ANY}/ & ~/({tag}|{heads}){ANY}/")
        self.add("TEXT_X", f"/{ANY}/ & ~/({tag}|{fence}){ANY}/ & ~/{called}/")
        if is_special:
            marker = self._mark(form.marker)
            self.add("tag", f"TEXT {marker}")
            self.add("tag_x", f"TEXT_X {marker}")
        else:
            self.add("tag[lazy]", f"/{tag}/")
            self.add("tag_x[lazy]", "TAG_X")
            self.add("TAG_X", f"/{tag}/ & ~/{called}/")
        self._add_calls("named", regex(BARE_NECK))
        self._rules[-1] += f" /{regex(form.bare_tail)}/"

    def _add_native(self, form: CallFormat) -> None:
        """What follows a marker."""
        self.add("native", f"/{regex(form.head)}/ native_name /{regex(form.tail)}/")
        self._add_calls("native_name", regex(form.neck))

    def _add_calls(self, rule: str, neck: str) -> None:
        """A declared name, the neck, and arguments by that tool's schema."""
        calls = [f"/{escape(tool.name)}{neck}/ schema_{index}" for index, tool in enumerate(self._tools)]
        self.add(rule, f"({' | '.join(calls)})")

    def _mark(self, text: str) -> str:
        token_id = self._special.get(text)
        return f"/{escape(text)}/" if token_id is None else f"<[{token_id}]>"
