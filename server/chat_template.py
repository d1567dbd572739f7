"""Chat templates: the Jinja environment that model makers write for, in a sandbox, with bounds.

The environment is the one that Hugging Face documents for chat templates (trimmed blocks, loop controls,
`raise_exception`, `strftime_now`, a `tojson` that does not escape HTML, `{% generation %}`). A template comes with a
model and is not trusted: it sees plain data only, each loop round and call looks at a deadline, and its output is
bounded.
"""

import json
import threading
import time
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from server.errors import MAX_ECHO_CHARS, bad_request

RENDER_SECONDS = 10.0
MAX_EXTRA_CHARS = 4_000_000
"""Beyond what a template may add to the text it is given."""
MAX_EXPONENT = 256
_TICK, _CONCAT = "_headrace_tick", "_headrace_concat"


class TemplateLimitError(jinja2.TemplateError):
    """A template ran too long or wrote too much."""


class TemplateRefusalError(jinja2.TemplateError):
    """A template called `raise_exception`; the message is its own."""


class ChatTemplate:
    """One compiled template. Rendering is thread-safe.

    Raises `jinja2.TemplateError` from the constructor where the source is no template.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._environment = _ChatEnvironment()
        tree = self._environment.parse(source)
        self.variables = frozenset(meta.find_undeclared_variables(tree))
        """Variables the template reads."""
        self.literals = "\0".join(_literals(tree))
        """All text the template itself can write."""
        self.inspected = frozenset(_inspected(tree))
        """Literals the template looks for in the text it is given."""
        for loop in list(tree.find_all(nodes.For)):
            tick = nodes.Call(nodes.Name(_TICK, "load"), [], [], None, None)
            loop.body.insert(0, nodes.ExprStmt(tick).set_lineno(loop.lineno))
        bounded: nodes.Template = _BoundedConcat().visit(tree)
        self._template = self._environment.from_string(bounded.set_environment(self._environment))  # type: ignore[arg-type]

    def render(self, variables: dict[str, Any]) -> str:
        """The prompt's text. Raises `ApiError` 400 with the template's own words where it refuses or fails."""
        _limits.chars = limit = MAX_EXTRA_CHARS + 4 * _text_size(variables)
        _limits.deadline = time.monotonic() + RENDER_SECONDS
        try:
            parts: list[str] = []
            size = 0
            for part in self._template.generate(variables):
                size += len(part)
                if size > limit:
                    raise TemplateLimitError(f"it wrote more than {limit} characters")
                parts.append(part)
            return "".join(parts)
        except TemplateRefusalError as error:
            raise bad_request(
                f"The model's chat template refuses this conversation: {_short(error)}", param="messages"
            ) from None
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            raise bad_request(
                f"The model's chat template cannot show this conversation: {_short(error)}", param="messages"
            ) from None
        except (RecursionError, MemoryError):
            raise bad_request(
                "The model's chat template cannot show this conversation: it needs too much memory", param="messages"
            ) from None


class _Limits(threading.local):
    """Of the render that runs on this thread."""

    deadline = float("inf")
    chars = MAX_EXTRA_CHARS


_limits = _Limits()


def _tick() -> str:
    if time.monotonic() > _limits.deadline:
        raise TemplateLimitError(f"it ran longer than {RENDER_SECONDS:.0f} seconds")
    return ""


class _GenerationBlock(Extension):
    """`{% generation %}` marks an assistant's words for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012, the base class declares an instance-or-class set

    def parse(self, parser: Parser) -> nodes.Node:
        """The block's body, in a scope of its own."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class _ChatEnvironment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals[_TICK] = _tick
        self.globals[_CONCAT] = _concat

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call a template makes; the odd names leave all others to the template's keyword arguments."""
        _tick()
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The operators that build, in a step or two, what fills the memory."""
        if operator == "**" and not (isinstance(right, int | float) and abs(right) <= MAX_EXPONENT):
            raise TemplateLimitError("it computes a power too large")
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, str | list | tuple) and isinstance(times, int):
                    _check_size(len(sequence) * times)
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            _check_size(len(left) + len(right))
        return super().call_binop(context, operator, left, right)


class _BoundedConcat(NodeTransformer):
    """Turns `a ~ b` into a call that looks at the size of what it makes."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        call = nodes.Call(nodes.Name(_CONCAT, "load"), node.nodes, [], None, None)
        call.set_lineno(node.lineno)
        return call


def _concat(*values: object) -> str:
    texts = [str(value) for value in values]
    _check_size(sum(map(len, texts)))
    return "".join(texts)


def _check_size(size: int) -> None:
    if size > _limits.chars:
        raise TemplateLimitError("it builds a text too long")


def _raise_exception(message: object) -> NoReturn:
    raise TemplateRefusalError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if ensure_ascii and "\\ufd" in text:
        # The break characters of `control_tokens` must stay themselves, or they would show in the prompt.
        for code in range(0xFDD0, 0xFDF0):
            text = text.replace(f"\\u{code:04x}", chr(code))
    return text


def _literals(tree: nodes.Template) -> set[str]:
    data = {node.data for node in tree.find_all(nodes.TemplateData)}
    return data | {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}


def _inspected(tree: nodes.Template) -> set[str]:
    """Constants on the left of `in`, and arguments of method calls: `content.split('</think>')`."""
    found: set[str] = set()
    for compare in tree.find_all(nodes.Compare):
        if any(operand.op in ("in", "notin") for operand in compare.ops) and isinstance(compare.expr, nodes.Const):
            found.add(str(compare.expr.value))
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr):
            found.update(str(argument.value) for argument in call.args if isinstance(argument, nodes.Const))
    return found


def _text_size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_text_size(key) + _text_size(child) for key, child in value.items())
    if isinstance(value, list):
        return sum(map(_text_size, value))
    return 8


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[: 3 * MAX_ECHO_CHARS]
