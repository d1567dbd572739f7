"""Bounds on what a chat template builds while it runs.

A template comes with a model and is not trusted. Jinja's sandbox keeps it from our objects, not from our memory: one
call such as `'x'.center(10**9)` fills it, and lists that hold each other twice are exponential once they are printed
or compared. So before every operation that can build much from little, the size of its result is worked out here, in
characters, and held against the limit of the render. A render also looks at its deadline in every loop round and call.
"""

import threading
import time
from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from itertools import islice
from typing import Any

import jinja2
from jinja2.utils import Namespace

RENDER_SECONDS = 10.0
"""Of the thread's own time, so that a busy machine refuses nobody."""
MAX_EXTRA_CHARS = 4_000_000
"""Beyond what a template may add to the text it is given."""
MAX_WRITTEN = 16
"""All that a render writes, into macros and blocks too, as a multiple of the largest text it may build."""
MAX_ITEMS = 200_000
"""Entries of a list that a filter makes of a lazy sequence."""
NODE_CHARS = 32
"""What an entry of a list counts beside its text."""


class TemplateLimitError(jinja2.TemplateError):
    """A template ran too long or built too much."""


class _Limits(threading.local):
    """Of the render that runs on this thread."""

    deadline = float("inf")
    chars = MAX_EXTRA_CHARS
    written = MAX_WRITTEN * MAX_EXTRA_CHARS


_limits = _Limits()


def begin(given: object) -> int:
    """Start the clock and the books of a render of the variables `given`; the most characters it may write."""
    chars = MAX_EXTRA_CHARS + 4 * _size_of_given(given)
    _limits.chars, _limits.written = chars, MAX_WRITTEN * chars
    _limits.deadline = time.thread_time() + RENDER_SECONDS
    return chars


def tick() -> str:
    """Raise `TemplateLimitError` past the deadline; otherwise nothing, in a template's output too."""
    if time.thread_time() > _limits.deadline:
        raise TemplateLimitError(f"it ran longer than {RENDER_SECONDS:.0f} seconds")
    return ""


def spend(size: int) -> None:
    """Raise `TemplateLimitError` if the `size` characters that are about to be built are too many."""
    if size > _limits.chars:
        raise TemplateLimitError("it builds a text too long")


def measure(value: Any) -> int:
    """Characters that `value` shows when printed, about; what it shares with itself counts each time.

    Raises `TemplateLimitError` as soon as that is beyond the limit, and for objects that print more than can be told.
    """
    size, count = 0, 0
    pending = [iter((value,))]
    while pending:
        for item in pending[-1]:
            count += 1
            if count % 4096 == 0:
                tick()
            size += len(item) if isinstance(item, str | bytes) else NODE_CHARS
            if size > _limits.chars:
                raise TemplateLimitError("it builds a text too long")
            inner = children_of(item)
            if inner is not None:
                pending.append(inner)
                break
        else:
            pending.pop()
    return size


def children_of(item: Any) -> Iterator[Any] | None:
    """What is inside of a list or the like, None for what holds nothing."""
    if isinstance(item, list | tuple | set | frozenset | KeysView | ValuesView | ItemsView):
        return iter(item)
    if isinstance(item, dict):
        return (part for pair in item.items() for part in pair)
    if isinstance(item, Namespace):
        raise TemplateLimitError("it prints or stores a namespace")
    return None


def _size_of_given(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return NODE_CHARS + sum(_size_of_given(key) + _size_of_given(child) for key, child in value.items())
    if isinstance(value, list):
        return NODE_CHARS + sum(map(_size_of_given, value))
    return NODE_CHARS


def checked(value: Any) -> Any:
    """`value`, a list or the like that has just been built. Raises `TemplateLimitError` if it is too large."""
    spend(measure(value))
    return value


def written(value: Any) -> Any:
    """`value`, which is about to be printed. Raises `TemplateLimitError` if that, or all so far, is too much."""
    size = len(value) if isinstance(value, str) else measure(value)
    spend(size)
    _limits.written -= size
    if _limits.written < 0:
        raise TemplateLimitError("it writes too much")
    return value


def concatenated(*values: object) -> str:
    """`a ~ b`."""
    spend(measure(values))
    return "".join(map(str, values))


def joined(parts: Iterable[str]) -> str:
    """The texts of a macro or block as one."""
    texts = list(parts)
    spend(sum(map(len, texts)))
    return "".join(texts)


def bounded_list(values: Iterable[Any]) -> list[Any]:
    """The entries of a lazy sequence. Raises `TemplateLimitError` if there are too many."""
    entries = list(islice(values, MAX_ITEMS + 1)) if not isinstance(values, list | tuple) else list(values)
    if len(entries) > max(MAX_ITEMS, _limits.chars // NODE_CHARS):
        raise TemplateLimitError("it builds a list too long")
    spend(measure(entries))
    return entries
