"""Plots and pages: figures stand where they belong, whatever they are, and nothing of a page comes from elsewhere."""

import argparse
import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from engine.errors import ConfigError
from server.benchmarks.charts import Bars, Chart, Line, Lines, Timeline
from server.benchmarks.outcome import Outcome, Table, add_outputs, publish
from server.benchmarks.plot_files import save_all
from server.benchmarks.svg import LETTER, WIDTH, draw, log_ticks, ticks

LINES = Lines(
    title="Rates <&>",
    x="ms",
    y="tokens",
    lines=(
        Line(name="one", points=((10, 100), (20, 300)), labels=("1 client", "4 clients")),
        Line(name="two", points=((12, 50),)),
    ),
)
CURVE = Lines(title="Curve", x="ms", y="%", lines=(Line(name="a", points=((0, 0), (1, 50), (30, 99))),), x_log=True)
NOTHING = Lines(title="Nothing", x="ms", y="%", lines=())
BARS = Bars(title="Bars", x="tok/s", groups=("1", "16"), rows=(("a", (10, 100)), ("b", (None, 50))))
TIMELINE = Timeline(title="Step", x="us", spans=(("schedule", 0, 3), ("build", 3, 9)))


def numbers(element: ElementTree.Element, *names: str) -> list[float]:
    return [float(element.attrib[name]) for name in names]


@pytest.mark.parametrize("chart", [LINES, CURVE, NOTHING, BARS, TIMELINE], ids=lambda chart: chart.title)
def test_each_plot_is_one_element_with_nothing_outside_of_it(chart: Chart) -> None:
    root = ElementTree.fromstring(draw(chart))
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    assert root.attrib["aria-label"] == chart.title
    for element in root:
        for name, value in element.attrib.items():
            if name in ("x", "cx"):
                assert 0 <= float(value) <= width, element.attrib
            if name in ("y", "cy"):
                assert 0 <= float(value) <= height, element.attrib


def test_points_stand_where_their_figures_say() -> None:
    root = ElementTree.fromstring(draw(LINES))
    (low_x, low_y), (high_x, high_y) = (numbers(circle, "cx", "cy") for circle in root.findall("circle")[:2])
    (line, _) = root.findall("polyline")
    assert low_x < high_x and low_y > high_y  # upwards is less in SVG
    assert line.attrib["points"].split()[0] == f"{low_x:.1f},{low_y:.1f}"
    assert [text.text for text in root.findall("text") if text.text in ("1 client", "4 clients", "one", "two")]


def test_bars_are_as_long_as_their_figures() -> None:
    root = ElementTree.fromstring(draw(BARS))
    widths = [float(rect.attrib["width"]) for rect in root.findall("rect")[:4]]
    assert widths[1] == pytest.approx(10 * widths[0], rel=0.01) and widths[2] == 0
    assert "no figure" in draw(BARS)


def test_a_legend_has_its_names_whole_within_the_drawing() -> None:
    names = [f"headrace_int8, {clients} clients" for clients in (1, 4, 16, 64)] + ["short"]
    lines = tuple(Line(name=name, points=((0.0, 1.0), (1.0, 2.0))) for name in names)
    root = ElementTree.fromstring(draw(Lines(title="t", x="x", y="y", lines=lines)))
    shown = {one.text: one for one in root.findall("text")}
    for name in names:
        assert float(shown[name].attrib["x"]) + len(name) * LETTER <= WIDTH
        assert float(shown[name].attrib["y"]) < float(root.attrib["viewBox"].split()[3])


def test_ticks_are_round_and_enclose_the_figures() -> None:
    assert ticks(0, 97) == [0, 20, 40, 60, 80, 100] and ticks(0, 0.3)[-1] == pytest.approx(0.3)
    assert ticks(0, 0)[-1] == 1
    assert log_ticks(3, 40) == [2, 5, 10, 20, 50]


def outcome() -> Outcome:
    table = Table(caption="<a>", header=["load", "tok/s"], rows=[["1 client", "<b>"]])
    return Outcome(kind="serve", label="mine", found={"levels": [1]}, tables=(table,), charts=(LINES, BARS),
                   notes=("error: <script>",), has_failed=True)  # fmt: skip


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_outputs(parser)
    parser.add_argument("--api-key", default="")
    parser.add_argument("--home", type=Path, default=Path("/home/somebody/peers"))
    return parser.parse_args(words)


def test_figures_go_to_the_terminal_to_json_and_to_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, page = tmp_path / "new" / "a.json", tmp_path / "new" / "a.html"
    options = parsed("--json", str(found), "--report", str(page), "--api-key", "secret-key")
    assert publish(outcome(), options) == 1
    assert "| 1 client |" in capsys.readouterr().out
    told = json.loads(found.read_text())
    assert told["levels"] == [1] and {"date", "command", "commit", "versions", "machine", "options"} <= set(told)
    text = page.read_text()
    assert "secret-key" not in found.read_text() + text
    assert told["options"]["home"] == "peers" and "somebody" not in found.read_text() + text, "whose machine it was"
    assert text.count("<svg") == 2 and "prefers-color-scheme: dark" in text
    assert not re.search(r"<script|<link|<img|src=|@import|url\(|https?://", text)
    assert "&lt;script&gt;" in text and "&lt;b&gt;" in text


def test_a_file_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        publish(outcome(), parsed("--json", str(tmp_path / "file" / "a.json")))


def test_pictures_without_matplotlib_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError) as caught:
        save_all([LINES], tmp_path)
    assert "headrace[plots]" in (caught.value.hint or "")
