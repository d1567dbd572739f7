"""How much an operator, method or filter of a template will make of what it is given, worked out before it does."""

import re
import string
from collections.abc import Callable
from typing import Any

from server.prompt.template_limits import NODE_CHARS, TemplateLimitError, bounded_list, children_of, measure, spend

MAX_WIDTH = 10_000
"""Width or precision of a formatted field."""
MAX_BITS = 4096
"""Of a product or power."""
_PERCENT = re.compile(
    r"%(?:\((?P<key>[^)]*)\))?[#0\- +]*(?P<width>\*|\d+)?(?:\.(?P<precision>\*|\d+))?[hlL]?(?P<kind>.)"
)


def check_operator(operator: str, left: Any, right: Any) -> None:
    """Raise `TemplateLimitError` where `left operator right` is too much."""
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator == "**":
        if not (isinstance(right, int | float) and abs(right) <= MAX_BITS):
            raise TemplateLimitError("it computes a power too large")
        if numbers and left.bit_length() * abs(right) > MAX_BITS:
            raise TemplateLimitError("it computes a power too large")
    elif operator == "*":
        if numbers and left.bit_length() + right.bit_length() > MAX_BITS:
            raise TemplateLimitError("it computes a product too large")
        for built, times in ((left, right), (right, left)):
            if isinstance(built, str | list | tuple) and isinstance(times, int):
                spend(measure(built) * max(times, 0))
    elif operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        spend(measure(left) + measure(right))
    elif operator == "%" and isinstance(left, str):
        spend(_percent_size(left, right))


def check_method(owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Raise `TemplateLimitError` where the method `name` of `owner` would build too much of `args`.

    Returns the arguments to call it with: what was lazy in them has been read.
    """
    if name in ("encode", "to_bytes"):
        raise TemplateLimitError(f"it calls {name}(), and templates have no use for bytes")
    if isinstance(owner, str):
        if name == "join" and args:
            args = (bounded_list(args[0]), *args[1:])
        size = _TEXT_METHODS.get(name)
        spend(len(owner) if size is None else size(owner, *args, **kwargs))
    return args


def _replaced_size(text: Any, old: Any, new: Any, count: int | None = -1) -> int:
    measure([text, old, new])
    text, old, new = str(text), str(old), str(new)
    found: int = text.count(old)
    found = found if count is None or count < 0 else min(found, count)
    return len(text) + found * max(0, len(new) - len(old))


def _padded_size(text: Any, width: int = 80, *rest: Any) -> int:
    return measure(text) + max(0, width)


def _joined_size(separator: str, parts: list[Any]) -> int:
    return measure(parts) + len(separator) * len(parts)


def _format_size(form: str, *args: Any, **kwargs: Any) -> int:
    size, largest = len(form), measure([args, kwargs])
    for _, name, spec, _ in string.Formatter().parse(form):
        if name is not None:
            _check_width(spec or "")
            size += largest * 8 + MAX_WIDTH
    return size


def _format_map_size(form: str, mapping: Any) -> int:
    return _format_size(form, mapping)


def _percent_size(form: str, values: Any) -> int:
    size, largest = len(form), measure(values)
    for field in _PERCENT.finditer(form):
        if field["kind"] != "%":
            _check_width(f"{field['width'] or ''}.{field['precision'] or ''}")
            size += largest * 8 + MAX_WIDTH
    return size


def _check_width(spec: str) -> None:
    widths = [int(digits[:9]) for digits in re.findall(r"\d+", spec)]
    if "*" in spec or "{" in spec or max(widths, default=0) > MAX_WIDTH:
        raise TemplateLimitError("it formats a field too wide")


def _translated_size(text: str, table: Any) -> int:
    values = table.values() if isinstance(table, dict) else ()
    return len(text) * max((len(value) for value in values if isinstance(value, str)), default=1)


_TEXT_METHODS: dict[str, Callable[..., int]] = {
    "replace": _replaced_size,
    "join": _joined_size,
    "center": _padded_size,
    "ljust": _padded_size,
    "rjust": _padded_size,
    "zfill": _padded_size,
    "expandtabs": lambda text, tabsize=8: len(text) + text.count("\t") * max(0, tabsize),
    "format": _format_size,
    "format_map": _format_map_size,
    "translate": _translated_size,
}


def _indented_size(text: str, width: int | str = 4, *rest: Any, **options: Any) -> int:
    return len(text) + (text.count("\n") + 1) * (len(width) if isinstance(width, str) else max(0, width))


def _wrapped_size(text: str, width: int = 79, *rest: Any, **options: Any) -> int:
    wrap = options.get("wrapstring") or (rest[1] if len(rest) > 1 else "\n")
    return len(text) + (len(text) + 1) * len(str(wrap))


def _json_size(
    value: Any, ensure_ascii: Any = False, indent: Any = None, separators: Any = None, sort_keys: Any = False
) -> int:
    step = indent if isinstance(indent, int) else len(indent or "")
    between = measure(list(separators)) if separators else 2
    if step > MAX_WIDTH or between > MAX_WIDTH:
        raise TemplateLimitError("it formats a field too wide")
    size = measure(value)
    # A value of so many characters has at most so many lines, each of which is indented by all that it is nested.
    return size * (6 if ensure_ascii else 2) + (size // NODE_CHARS + 1) * (step * _depth(value) + between)


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [child for item in level for child in children_of(item) or ()]
    return depth


def _round_size(value: Any, precision: int = 0, *rest: Any, **options: Any) -> int:
    _check_width(str(precision))
    return NODE_CHARS


def _items_size(values: Any, count: int, *rest: Any) -> int:
    return measure(values) + NODE_CHARS * max(0, count)


def _plain_size(value: Any, *rest: Any, **options: Any) -> int:
    """Of filters that make at most some ten characters of one."""
    return measure(value)


FILTER_SIZES: dict[str, Callable[..., int]] = {
    "center": _padded_size,
    "format": lambda form, *args, **kwargs: _percent_size(form, kwargs or args),
    "indent": _indented_size,
    "wordwrap": _wrapped_size,
    "replace": _replaced_size,
    "tojson": _json_size,
    "join": lambda parts, separator="", *rest, **options: measure(parts) + measure(separator) * len(parts),
    "round": _round_size,
    "batch": _items_size,
    "slice": _items_size,
    "urlencode": _plain_size,
    "string": _plain_size,
    "escape": _plain_size,
    "e": _plain_size,
    "forceescape": _plain_size,
}
"""Filter -> the size of what it makes of its arguments. Those not named here make no more than they are given."""

READING_FILTERS = frozenset(
    {"list", "join", "sort", "unique", "groupby", "reverse", "sum", "max", "min", "last", "random", "batch", "slice"}
)
"""Filters that read a sequence to its end; a lazy one is read for them, within bounds."""
WITHDRAWN = ("pprint", "urlize", "xmlattr", "lipsum")
"""Filters and functions that templates of conversations have no use for, and whose results are hard to foretell."""
