"""One page of HTML with tables and plots, which needs nothing from elsewhere and has no script."""

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from server.benchmarks.charts import Chart
from server.benchmarks.svg import draw

MOST_OF_A_FIGURE = 20
"""Characters; what is longer is words, which may go over several lines."""


def page(
    told: dict[str, Any],
    tables: Sequence[tuple[str, list[str], list[list[str]]]],
    charts: Sequence[Chart],
    notes: Sequence[str],
) -> str:
    """`told` is what JSON begins with: label, kind, circumstances and options. Tables have caption, header and rows."""
    title = f"{told['label']}: headrace bench {told['measured']}"
    style = files("server.benchmarks").joinpath("page.css").read_text(encoding="utf-8")
    machine = told["machine"]
    facts = {
        "Command": told["command"],
        "Date": told["date"],
        "Commit": told["commit"],
        "Machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB"
        + "".join(f", {name}" for name in machine["gpus"])
        + f"; load before: {machine['load_1min']}",
        "Versions": ", ".join(f"{name} {version}" for name, version in told["versions"].items()),
    }
    body = [f"<h1>{escape(title)}</h1>"]
    body += [_table(*one) for one in tables]
    body += [f"<p>{escape(note)}</p>" for note in notes]
    body += [f"<figure><figcaption>{escape(chart.title)}</figcaption>{draw(chart)}</figure>" for chart in charts]
    body.append("<h2>How it was measured</h2><dl>")
    body += [f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items()]
    options = escape(json.dumps(told["options"], indent=1))
    body.append(f"</dl><details><summary>All options</summary><pre>{options}</pre></details>")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    lines = ["<!doctype html>", f'<html lang="en"><head>{head}', f"<style>\n{style}</style></head>", "<body>", *body]
    return "\n".join([*lines, "</body></html>\n"])


def _cell(text: str, tag: str) -> str:
    words = ' class="words"' if len(text) > MOST_OF_A_FIGURE and tag == "td" else ""
    return f"<{tag}{words}>{escape(text.replace('`', ''))}</{tag}>"


def _table(caption: str, header: list[str], rows: list[list[str]]) -> str:
    def row(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(_cell(cell, tag) for cell in cells) + "</tr>"

    lines = [row(header, "th"), *(row(cells, "td") for cells in rows)]
    return f"<div><table><caption>{escape(caption)}</caption>\n" + "\n".join(lines) + "\n</table></div>"
