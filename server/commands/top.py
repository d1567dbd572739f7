"""`headrace top`: a running server's models at work, drawn anew every second."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from server.commands.running import RemoteError, RunningServer, state_words
from server.commands.table import readable_memory

_SERIES = re.compile(r"headrace_(\w+?)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

_ESCAPED = re.compile(r"\\(.)")
_COLUMNS = ("MODEL", "STATE", "MEMORY", "RUNNING", "WAITING", "KV", "TOK/S", "PROMPT TOK/S", "RESTARTS")
_MODEL = _COLUMNS[0]
_WORDS = frozenset(_COLUMNS[:3])
"""Columns of words; the others are of numbers."""
_LEAST_IMPORTANT_FIRST = ("RESTARTS", "PROMPT TOK/S", "MEMORY", "KV", "WAITING")
"""What a narrow terminal goes without."""
SHORT_NAME = 16
"""Characters of a model's name that are shown at least."""
GAP = 2


@dataclass(frozen=True, slots=True)
class Sample:
    """What a server said at one moment: its models, and its metrics by series and labels."""

    at: float
    models: list[dict[str, Any]]
    metrics: dict[tuple[str, ...], float] = field(default_factory=dict)

    def of(self, name: str, *labels: str) -> float:
        """The value of a series, 0 where there is none."""
        return self.metrics.get((name, *labels), 0.0)

    def sum(self, name: str) -> float:
        """The values of all series of a name together."""
        return sum(value for (series, *_), value in self.metrics.items() if series == name)

    def rate(self, before: "Sample | None", name: str, *labels: str) -> float:
        """Growth a second since an earlier sample; a counter that began again counts from zero."""
        if before is None or self.at <= before.at:
            return 0.0
        now, then = self.of(name, *labels), before.of(name, *labels)
        return (now - then if now >= then else now) / (self.at - before.at)

    def mean(self, before: "Sample | None", name: str) -> float | None:
        """The mean of what the histograms of all models have counted since an earlier sample, or ever.

        None where that is nothing.
        """
        count, total = self.sum(f"{name}_count"), self.sum(f"{name}_sum")
        if before is not None and count > before.sum(f"{name}_count"):
            count, total = count - before.sum(f"{name}_count"), total - before.sum(f"{name}_sum")
        return total / count if count > 0 else None


def run(url: str | None, *, once: bool = False) -> int:
    """Draw until interrupted, or `once`; the exit code. Raises `HeadraceError` if the server cannot be asked at first.

    What is no terminal gets one picture: there nothing could be drawn anew.
    """
    console = Console(file=sys.stdout)
    with RunningServer(url) as server:
        if once or not console.is_terminal:
            console.print(picture(take(server, time.monotonic), None, console.width))
            return 0
        seen = pictures(server, time.monotonic, lambda: console.width)
        first = next(seen)  # before the screen is taken, so that its error stays to be read
        with Live(first, console=console, auto_refresh=False, screen=True) as live:
            while True:
                live.refresh()
                time.sleep(1.0)
                live.update(next(seen))


def pictures(server: RunningServer, clock: Callable[[], float], width: Callable[[], int]) -> Iterator[Group]:
    """What is drawn, whenever the next one is asked for. Raises `HeadraceError` if that fails the first time.

    Later the server may be away, as it is while it is restarted: that is said, with what was seen last below it.
    """
    last = take(server, clock)
    before: Sample | None = None
    while True:
        yield picture(last, before, width())
        before = last
        while True:
            try:
                last = take(server, clock)
                break
            except RemoteError as error:
                said = Text(f"The server does not answer, and is asked again every second: {error}", style="bold red")
                yield Group(said, Text("This was seen last:"), picture(last, None, width()))
                before = None  # a server that has been started anew counts from zero


def take(server: RunningServer, clock: Callable[[], float]) -> Sample:
    """Ask a server how it stands."""
    models = server.ask("GET", "/v1/models")["data"]
    return Sample(clock(), models, parse_metrics(server.text("/metrics")))


def parse_metrics(text: str) -> dict[tuple[str, ...], float]:
    """Series of Headrace's own, by name and the values of their labels in order."""
    found: dict[tuple[str, ...], float] = {}
    for line in text.splitlines():
        if series := _SERIES.fullmatch(line):
            labels = [_ESCAPED.sub(_plain, value) for _, value in _LABEL.findall(series[2] or "")]
            found[series[1], *labels] = float(series[3])
    return found


def _plain(escaped: re.Match[str]) -> str:
    return "\n" if escaped[1] == "n" else escaped[1]


def picture(sample: Sample, before: Sample | None, width: int = 140) -> Group:
    """What is drawn in so many columns of characters: a line about the server, and a table of its models."""
    rows = [_row(model, sample, before) for model in sample.models]
    names, room = _fitting(rows, width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, justify="left" if name in _WORDS else "right", no_wrap=True)
    for row in rows:
        cells = {**row, _MODEL: _ending(row[_MODEL], room)}
        table.add_row(*(Text(cells[name]) for name in names))
    return Group(Text(_server_line(sample, before)), Text(), table)


def _fitting(rows: list[dict[str, str]], width: int) -> tuple[list[str], int]:
    """The columns that fit beside each other, the least important left out first, and the room for a model's name."""
    names = list(_COLUMNS)
    widths = {name: max(len(name), *(len(row[name]) for row in rows), 0) for name in names}
    least = min(widths[_MODEL], SHORT_NAME)
    for name in _LEAST_IMPORTANT_FIRST:
        if least + sum(widths[name] + GAP for name in names[1:]) <= width:
            break
        names.remove(name)
    return names, max(least, width - sum(widths[name] + GAP for name in names[1:]))


def _ending(name: str, room: int) -> str:
    """A model's name in so many characters; its end tells more than the organisation that it begins with."""
    return name if len(name) <= room else f"…{name[1 - room :]}"


def _row(model: dict[str, Any], sample: Sample, before: Sample | None) -> dict[str, str]:
    name, memory = model["id"], model["memory_bytes"]
    total = sample.of("kv_blocks", name, "total")
    cells = (
        name,
        state_words(model),
        "-" if memory is None else readable_memory(memory),
        f"{sample.of('requests_running', name):.0f}",
        f"{sample.of('requests_waiting', name):.0f}",
        f"{sample.of('kv_blocks', name, 'owned') / total:.0%}" if total else "-",
        f"{sample.rate(before, 'generation_tokens_total', name):.1f}",
        f"{sample.rate(before, 'prompt_tokens_computed_total', name):.1f}",
        f"{sample.of('engine_restarts_total', name):.0f}",
    )
    return dict(zip(_COLUMNS, cells, strict=True))


def _server_line(sample: Sample, before: Sample | None) -> str:
    parts = [f"{sample.of('requests_in_flight'):.0f} requests", f"{sample.of('requests_refused_total'):.0f} refused"]
    for name, what in (("time_to_first_token_seconds", "to the first token"), ("request_duration_seconds", "in all")):
        if (seconds := sample.mean(before, name)) is not None:
            parts.append(f"{1000 * seconds:.0f} ms {what}")
    for (series, *labels), budget in sample.metrics.items():
        if series == "memory_budget_bytes" and (granted := sample.of("memory_granted_bytes", *labels)):
            parts.append(f"{readable_memory(granted)} of {readable_memory(budget)} on {labels[0]}")
    return ", ".join(parts)
