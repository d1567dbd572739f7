"""What a measurement found, and its ways out: the table, JSON, a page, pictures."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import ConfigError
from server.benchmarks.charts import Chart
from server.benchmarks.page import page
from server.benchmarks.record import circumstances, table, without_folders, write_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Figures in columns; the first row of cells is `header`."""

    caption: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """All that one command found."""

    kind: str
    """The subcommand."""
    label: str
    """What was measured, in a word."""
    found: dict[str, Any]
    """Plain data for JSON, beside the circumstances and options."""
    tables: tuple[Table, ...]
    charts: tuple[Chart, ...] = ()
    notes: tuple[str, ...] = field(default=())
    """Lines below the tables: errors, what a figure leaves out."""
    has_failed: bool = False
    """Whether the command's exit code is 1."""


SECRET = ("api_key",)
NO_FIGURE = ("handler", "json", "report", "png", *SECRET)
"""Options that say nothing of what was measured."""


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """The options that say where figures go besides the terminal."""
    out = parser.add_argument_group("where figures go, besides the table")
    out.add_argument("--json", metavar="FILE", help="all figures, with date, command, commit, versions and machine")
    out.add_argument("--report", metavar="FILE.html", type=Path, help="one page with tables and plots")
    out.add_argument("--png", metavar="FOLDER", type=Path, help="each plot as a picture (needs headrace[plots])")
    parser.add_argument("--label", default="", help="a name for what is measured, in tables and plots")


def check_outputs(options: argparse.Namespace) -> None:
    """Raise `ConfigError` where figures could not go in the end, before they are measured."""
    for name in ("json", "report"):
        if (wanted := getattr(options, name)) and Path(wanted).is_dir():
            raise ConfigError(f"--{name} names a file, and {wanted} is a directory")
    if options.png:
        from server.benchmarks.plot_files import check_plots

        check_plots()


def publish(outcome: Outcome, options: argparse.Namespace) -> int:
    """Print the tables, write what is asked for; the exit code. Raises `ConfigError` where a file cannot be written."""
    told = {"label": outcome.label, "measured": outcome.kind, **circumstances()}
    told["options"] = {name: _plain(value) for name, value in vars(options).items() if name not in NO_FIGURE}
    for one in outcome.tables:
        print(f"{one.caption}\n{table(one.header, one.rows)}")
    print(*outcome.notes, sep="\n", end="\n" if outcome.notes else "")
    try:
        if options.json:
            write_json(options.json, told | outcome.found)
        if options.report:
            options.report.parent.mkdir(parents=True, exist_ok=True)
            tables = [(one.caption, one.header, one.rows) for one in outcome.tables]
            options.report.write_text(page(told, tables, outcome.charts, outcome.notes), encoding="utf-8")
        if options.png:
            from server.benchmarks.plot_files import save_all

            save_all(outcome.charts, options.png)
    except OSError as error:
        raise ConfigError(f"the figures cannot be written: {error.strerror or error}") from error
    return 1 if outcome.has_failed else 0


def _plain(value: Any) -> Any:
    """An option's value for JSON."""
    return value if isinstance(value, int | float | list | dict | None) else without_folders(str(value))
