"""Plots as PNG files, by matplotlib (`headrace[plots]`)."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.errors import ConfigError
from server.benchmarks.charts import Bars, Chart, Lines, Timeline

INCHES = (8.0, 4.5)
DPI = 160


def check_plots() -> None:
    """Raise `ConfigError` without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        hint = "it comes with headrace[plots]: .venv/bin/pip install -e '.[plots]'"
        raise ConfigError("pictures of plots need matplotlib", hint=hint) from None
    matplotlib.use("agg")


def save_all(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """One file for each plot, named by its title. Raises `ConfigError` without matplotlib, `OSError`."""
    check_plots()
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for chart in charts:
        figure, axes = pyplot.subplots(figsize=INCHES, layout="constrained")
        _draw(chart, axes)
        axes.set_title(chart.title)
        axes.set_xlabel(chart.x)
        path = folder / f"{re.sub(r'[^a-z0-9]+', '-', chart.title.lower()).strip('-')}.png"
        figure.savefig(path, dpi=DPI)
        pyplot.close(figure)
        paths.append(path)
    return paths


def _draw(chart: Chart, axes: Any) -> None:
    match chart:
        case Lines():
            for index, line in enumerate(chart.lines):
                xs, ys = [x for x, _ in line.points], [y for _, y in line.points]
                axes.plot(xs, ys, label=line.name, marker="os^"[index % 3] if line.is_marked else None)
                for (x, y), label in zip(line.points, line.labels, strict=False):
                    axes.annotate(label, (x, y), textcoords="offset points", xytext=(6, 6), fontsize=8)
            axes.set_ylabel(chart.y)
            axes.margins(0.1)
            axes.set_ylim(bottom=0)
            if chart.x_log:
                axes.set_xscale("log")
            else:
                axes.set_xlim(left=0)
            if len(chart.lines) > 1:
                axes.legend()
            axes.grid(alpha=0.3)
        case Bars():
            height = 0.8 / len(chart.groups)
            for index, group in enumerate(chart.groups):
                places = [place + index * height for place in range(len(chart.rows))]
                axes.barh(places, [row[index] or 0 for _, row in chart.rows], height, label=group)
            middle = 0.4 - height / 2
            axes.set_yticks([place + middle for place in range(len(chart.rows))], [name for name, _ in chart.rows])
            axes.invert_yaxis()
            if len(chart.groups) > 1:
                axes.legend()
        case Timeline():
            for place, (_, begin, end) in enumerate(chart.spans):
                axes.barh(place, end - begin, left=begin)
            axes.set_yticks(range(len(chart.spans)), [name for name, _, _ in chart.spans])
            axes.invert_yaxis()
