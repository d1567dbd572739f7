"""Plots as SVG text: `draw`. Colours come from the page's style sheet, so that one drawing suits light and dark.

Series differ in the form of their marks and in dashes as well as in colour.
"""

import math
from collections.abc import Callable, Iterable
from html import escape

from server.benchmarks.charts import Bars, Chart, Line, Lines, Timeline

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 16, 52
NUM_COLOURS = 6
"""Classes `c0` to `c5` of the style sheet; further series begin again."""
BAR, BAR_GAP, ROW_GAP = 16, 2, 14
NAME_WIDTH = 168
LETTER = 6.6
"""About the width of a letter of a label."""
LEGEND_ROW, LEGEND_MARK = 22, 24
"""Height of a line of the legend, and what a name has before and behind it."""


def draw(chart: Chart) -> str:
    """One `<svg>` element."""
    match chart:
        case Lines():
            return _lines(chart)
        case Bars():
            return _bars(chart)
        case Timeline():
            return _timeline(chart)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that reach from at most `low` to at least `high`: steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        high = low + 1
    rough = (high - low) / about
    power: float = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step * (1 - 1e-9))
    return [number * step for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten around two positive numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    first = max((tick for tick in found if tick <= low), default=low)
    last = min((tick for tick in found if tick >= high), default=high)
    return [tick for tick in found if first <= tick <= last]


def number(value: float) -> str:
    """A figure as an axis has it."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1 else f"{value:.2g}"


def _lines(chart: Lines) -> str:
    points = [point for line in chart.lines for point in line.points]
    if chart.x_log:
        points = [point for point in points if point[0] > 0]
    if not points:
        return _svg(chart.title, HEIGHT, [_text(WIDTH / 2, HEIGHT / 2, "nothing was measured", "middle")])
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_ticks = log_ticks(min(xs), max(xs)) if chart.x_log else ticks(0, max(xs))
    y_ticks = ticks(0, max(ys))
    at_x = _scale(x_ticks[0], x_ticks[-1], LEFT, WIDTH - RIGHT, is_log=chart.x_log)
    at_y = _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = [*_grid(x_ticks, y_ticks, at_x, at_y), *_axis_names(chart.x, chart.y)]
    for index, line in enumerate(chart.lines):
        parts += _line(line, index, at_x, at_y, is_log=chart.x_log)
    legend = [line.name for line in chart.lines] if len(chart.lines) > 1 else []
    return _svg(chart.title, HEIGHT + _legend_height(legend), [*parts, *_legend(legend, HEIGHT)])


def _line(
    line: Line, index: int, at_x: Callable[[float], float], at_y: Callable[[float], float], *, is_log: bool
) -> Iterable[str]:
    places = [(at_x(x), at_y(y)) for x, y in line.points if x > 0 or not is_log]
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline class="line c{index % NUM_COLOURS} d{index % 3}" points="{joined}"/>'
    if line.is_marked:
        yield from (_mark(x, y, index) for x, y in places)
    for (x, y), label in zip(places, line.labels, strict=False):
        is_right = x > WIDTH - RIGHT - len(label) * LETTER - 8
        yield _text(x - 7 if is_right else x + 7, y - 7, label, "end" if is_right else "start", "small")


def _mark(x: float, y: float, index: int) -> str:
    colour = f"mark c{index % NUM_COLOURS}"
    match index % 3:
        case 0:
            return f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        case 1:
            return f'<rect class="{colour}" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
        case _:
            return f'<path class="{colour}" d="M{x:.1f} {y - 5:.1f}l5 9h-10z"/>'


def _bars(chart: Bars) -> str:
    values = [value for _, row in chart.rows for value in row if value is not None]
    x_ticks = ticks(0, max(values, default=1.0))
    at_x = _scale(0, x_ticks[-1], NAME_WIDTH, WIDTH - 64)
    row_height = len(chart.groups) * (BAR + BAR_GAP) + ROW_GAP
    bottom = TOP + row_height * len(chart.rows)
    parts = [f'<path class="grid" d="M{at_x(tick):.1f} {TOP}V{bottom}"/>' for tick in x_ticks]
    parts += [_text(at_x(tick), bottom + 16, number(tick), "middle", "small") for tick in x_ticks]
    parts.append(_text((NAME_WIDTH + WIDTH - 64) / 2, bottom + 36, chart.x, "middle", "small"))
    for place, (name, row) in enumerate(chart.rows):
        top = TOP + place * row_height + ROW_GAP / 2
        middle = top + (row_height - ROW_GAP) / 2 + 4
        parts.append(_text(NAME_WIDTH - 10, middle, name[: int(NAME_WIDTH / LETTER)], "end"))
        for index, value in enumerate(row):
            y = top + index * (BAR + BAR_GAP)
            shown = "no figure" if value is None else number(round(value, 1) if value >= 10 else value)
            width = 0.0 if value is None else at_x(value) - NAME_WIDTH
            colour = f"mark c{index % NUM_COLOURS}"
            parts.append(f'<rect class="{colour}" x="{NAME_WIDTH}" y="{y:.1f}" width="{width:.1f}" height="{BAR}"/>')
            parts.append(_text(NAME_WIDTH + width + 6, y + BAR - 4, shown, "start", "small"))
    legend = list(chart.groups) if len(chart.groups) > 1 else []
    return _svg(chart.title, bottom + 52 + _legend_height(legend), [*parts, *_legend(legend, bottom + 48)])


def _timeline(chart: Timeline) -> str:
    bottom = TOP + len(chart.spans) * (BAR + 8)
    x_ticks = ticks(0, max((end for _, _, end in chart.spans), default=1.0))
    at_x = _scale(0, x_ticks[-1], NAME_WIDTH, WIDTH - 64)
    parts = [f'<path class="grid" d="M{at_x(tick):.1f} {TOP}V{bottom}"/>' for tick in x_ticks]
    parts += [_text(at_x(tick), bottom + 16, number(tick), "middle", "small") for tick in x_ticks]
    parts.append(_text((NAME_WIDTH + WIDTH - 64) / 2, bottom + 36, chart.x, "middle", "small"))
    for index, (name, begin, end) in enumerate(chart.spans):
        y = TOP + index * (BAR + 8) + 4
        left, width = at_x(begin), max(1.0, at_x(end) - at_x(begin))
        parts.append(_text(NAME_WIDTH - 10, y + BAR - 4, name, "end"))
        parts.append(f'<rect class="mark c0" x="{left:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BAR}"/>')
        parts.append(_text(left + width + 6, y + BAR - 4, number(round(end - begin, 2)), "start", "small"))
    return _svg(chart.title, bottom + 48, parts)


def _grid(
    x_ticks: list[float], y_ticks: list[float], at_x: Callable[[float], float], at_y: Callable[[float], float]
) -> Iterable[str]:
    for tick in y_ticks:
        yield f'<path class="grid" d="M{LEFT} {at_y(tick):.1f}H{WIDTH - RIGHT}"/>'
        yield _text(LEFT - 8, at_y(tick) + 4, number(tick), "end", "small")
    for tick in x_ticks:
        yield f'<path class="grid" d="M{at_x(tick):.1f} {HEIGHT - BOTTOM}v5"/>'
        yield _text(at_x(tick), HEIGHT - BOTTOM + 18, number(tick), "middle", "small")


def _axis_names(x: str, y: str) -> Iterable[str]:
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM + 38, x, "middle", "small")
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="rotate(-90 14 {middle:.0f})"'
    yield f'<text class="small" x="14" y="{middle:.0f}" text-anchor="middle" {turned}>{escape(y)}</text>'


def _legend_columns(names: list[str]) -> int:
    """As many, up to three, as leave the longest name whole."""
    longest = max(map(len, names), default=0)
    return max(1, min(3, int((WIDTH - LEFT) / (longest * LETTER + LEGEND_MARK))))


def _legend_height(names: list[str]) -> float:
    return LEGEND_ROW * math.ceil(len(names) / _legend_columns(names))


def _legend(names: list[str], top: float) -> Iterable[str]:
    columns = _legend_columns(names)
    for index, name in enumerate(names):
        x, y = LEFT + index % columns * (WIDTH - LEFT) / columns, top + 8 + index // columns * LEGEND_ROW
        yield _mark(x, y, index)
        yield _text(x + 10, y + 4, name, "start", "small")


def _scale(low: float, high: float, start: float, end: float, *, is_log: bool = False) -> Callable[[float], float]:
    """From a figure to a place in the drawing."""
    if is_log:
        low, high = math.log10(low), math.log10(high)
    width = (high - low) or 1.0

    def place(value: float) -> float:
        return start + ((math.log10(value) if is_log else value) - low) / width * (end - start)

    return place


def _text(x: float, y: float, text: str, anchor: str, kind: str = "name") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, height: float, parts: Iterable[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
    return "\n".join([head, *parts, "</svg>"])
