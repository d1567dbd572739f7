"""Chat templates: the Jinja environment that model makers write for, in a sandbox, with bounds.

The environment is the one that Hugging Face documents for chat templates (trimmed blocks, loop controls,
`raise_exception`, `strftime_now`, a `tojson` that does not escape HTML, `{% generation %}`). A template comes with a
model and is not trusted: it sees plain data only, and `template_limits` bounds how long it runs and what it builds.
"""

import functools
import json
from collections.abc import Callable, Sized
from datetime import datetime
from types import BuiltinFunctionType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from server.prompt import template_limits as limits
from server.prompt import template_sizes as sizes
from server.prompt.template_limits import TemplateLimitError
from server.prompt.template_reads import outside_variables
from server.protocol.errors import MAX_ECHO_CHARS, bad_request

_TICK, _CONCAT, _CHECKED = "_headrace_tick", "_headrace_concat", "_headrace_checked"


class Verbatim(str):
    """Text in the place of JSON, which `tojson` leaves as it is: arguments of a call that are no JSON."""

    __slots__ = ()


class TemplateRefusalError(jinja2.TemplateError):
    """A template called `raise_exception`; the message is its own."""


class ChatTemplate:
    """One compiled template. Rendering is thread-safe.

    Raises `jinja2.TemplateError` from the constructor where the source is no template.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        limits.begin({})
        self._environment = _ChatEnvironment()
        tree = self._environment.parse(source)
        self.variables = outside_variables(tree)
        """Variables the template reads and does not set itself before."""
        self.literals = "\0".join(_literals(tree))
        """All text the template itself can write."""
        self.inspected = frozenset(_inspected(tree))
        """Literals the template looks for in the text it is given."""
        for loop in list(tree.find_all(nodes.For)):
            tick = nodes.Call(nodes.Name(_TICK, "load"), [], [], None, None)
            loop.body.insert(0, nodes.ExprStmt(tick).set_lineno(loop.lineno))
        bounded: nodes.Template = _BoundedLiterals().visit(tree)
        self._template = self._environment.from_string(bounded.set_environment(self._environment))  # type: ignore[arg-type]

    def render(self, variables: dict[str, Any]) -> str:
        """The prompt's text. Raises `ApiError` 400 with the template's own words where it refuses or fails."""
        limit = limits.begin(variables)
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


class _GenerationBlock(Extension):
    """`{% generation %}` marks an assistant's words for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012, the base class declares an instance-or-class set

    def parse(self, parser: Parser) -> nodes.Node:
        """The block's body, in a scope of its own."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class _ChatEnvironment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(limits.joined)

    def __init__(self) -> None:
        extensions = [_GenerationBlock, loopcontrols]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=limits.written)
        self.filters["tojson"] = _tojson
        for name in sizes.WITHDRAWN:
            self.filters.pop(name, None)
            self.globals.pop(name, None)
        self.filters = {name: _bounded(name, function) for name, function in self.filters.items()}
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals[_TICK] = limits.tick
        self.globals[_CONCAT] = limits.concatenated
        self.globals[_CHECKED] = limits.checked

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call a template makes; the odd names leave all others to the template's keyword arguments."""
        limits.tick()
        # The sandbox wraps str.format.
        method = getattr(__obj, "__wrapped__", __obj)
        if isinstance(method, BuiltinFunctionType):
            args = sizes.check_method(method.__self__, method.__name__, args, kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        makes_new = __obj is dict or isinstance(getattr(method, "__self__", None), str | type)
        return limits.checked(result) if makes_new else result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The operators that build, in a step or two, what fills the memory."""
        sizes.check_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that works out the size of its result before it makes it."""
    # Some filters get the environment or the context before the value.
    first = 1 if hasattr(function, "jinja_pass_arg") else 0
    size_of = sizes.FILTER_SIZES.get(name)

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        limits.tick()
        head, (value, *rest) = args[:first], args[first:]
        if name in sizes.READING_FILTERS:
            if isinstance(value, str):
                limits.spend(8 * len(value))
            elif not isinstance(value, Sized):
                value = limits.bounded_list(value)
        if size_of is not None:
            limits.spend(size_of(value, *rest, **kwargs))
        return function(*head, value, *rest, **kwargs)

    return bounded


class _BoundedLiterals(NodeTransformer):
    """Turns `a ~ b`, and lists and dicts of what is not known yet, into calls that look at the size of the result."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        return _call(_CONCAT, node.nodes, node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Expr:
        self.generic_visit(node)
        return node if _is_constant(node) else _call(_CHECKED, [node], node.lineno)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return node if node.ctx != "load" or _is_constant(node) else _call(_CHECKED, [node], node.lineno)


def _is_constant(node: nodes.Node) -> bool:
    return all(isinstance(child, nodes.Const) for child in node.find_all(nodes.Expr))


def _call(function: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    call = nodes.Call(nodes.Name(function, "load"), arguments, [], None, None)
    call.set_lineno(line)
    return call


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
    if isinstance(value, Verbatim):
        return str(value)
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


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[: 3 * MAX_ECHO_CHARS]
