"""What a plot shows, whatever draws it."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """Points in their order. `labels` stand beside them where there are some."""

    name: str
    points: tuple[tuple[float, float], ...]
    labels: tuple[str, ...] = ()
    is_marked: bool = True
    """Whether each point has a mark; long curves have none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lines:
    """Lines over two axes, both from zero unless `x_log`."""

    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    x_log: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Bars:
    """A row of bars for each name, one bar for each of `groups`."""

    title: str
    x: str
    groups: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]
    """None where there is no figure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """What follows upon what: named spans, one below the other."""

    title: str
    x: str
    spans: tuple[tuple[str, float, float], ...] = field(default=())
    """Name, begin and end."""


Chart = Lines | Bars | Timeline
