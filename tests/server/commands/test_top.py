"""What `headrace top` draws, from made-up samples and from a server that runs."""

import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, Group

from server.commands import running
from server.commands.cli import main
from server.commands.running import RemoteError, RunningServer
from server.commands.top import Sample, parse_metrics, picture, pictures
from tests.server.fakes import Script, wait_until
from tests.server.routes.test_on_demand import body, post, serving

MODEL: dict[str, Any] = {"id": 'org/"odd"', "state": "ready", "memory_bytes": 2 * 2**30}


def metrics(tokens: int, count: int, total: float) -> dict[tuple[str, ...], float]:
    name = r"org/\"odd\""
    return parse_metrics(
        f'# HELP headrace_x y\nheadrace_generation_tokens_total{{model="{name}"}} {tokens}\n'
        f'headrace_kv_blocks{{model="{name}",state="owned"}} 25\n'
        f'headrace_kv_blocks{{model="{name}",state="total"}} 100\n'
        f'headrace_time_to_first_token_seconds_sum{{model="{name}"}} {total}\n'
        f'headrace_time_to_first_token_seconds_count{{model="{name}"}} {count - 1}\n'
        'headrace_time_to_first_token_seconds_count{model="other"} 1\n'
        'headrace_memory_budget_bytes{device="cpu"} 4294967296\n'
        'headrace_memory_granted_bytes{device="cpu"} 2147483648\n'
    )


def shown(drawing: Group, width: int = 140) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(drawing)
    return out.getvalue()


def drawn(sample: Sample, before: Sample | None, width: int = 140) -> str:
    return shown(picture(sample, before, width), width)


def test_rates_and_means_are_of_what_came_since_the_last_picture() -> None:
    first = Sample(10.0, [MODEL], metrics(100, 10, 1.0))
    assert "100 ms to the first token" in drawn(first, None) and "0.0" in drawn(first, None)
    text = drawn(Sample(12.0, [MODEL], metrics(150, 20, 4.0)), first)
    assert "300 ms to the first token" in text and "2.00 GiB of 4.00 GiB on cpu" in text
    assert 'org/"odd"' in text and "25%" in text and " 25.0 " in text
    # A model that was loaded anew counts from zero.
    assert " 4.0 " in drawn(Sample(12.0, [MODEL], metrics(8, 10, 1.0)), first)


def test_an_unloaded_model_has_dashes() -> None:
    text = drawn(Sample(0.0, [{"id": "m", "state": "unloaded", "memory_bytes": None}], {}), None)
    assert "unloaded" in text and text.count("-") == 2


@pytest.mark.parametrize(("width", "missing"), [(140, 0), (80, 1), (62, 2), (46, 5)])
def test_a_narrow_terminal_leaves_columns_out_instead_of_cutting_numbers(width: int, missing: int) -> None:
    models = [
        {"id": f"SomeOrganisation/Model-{size}B-Instruct", "state": "ready", "memory_bytes": 2e9} for size in (1, 2)
    ]
    head, *rows = drawn(Sample(0.0, models, {}), None, width).splitlines()[2:]
    left_out = [name for name in ("RESTARTS", "PROMPT TOK/S", "MEMORY", "KV", "WAITING") if name not in head]
    assert len(left_out) == missing and left_out == ["RESTARTS", "PROMPT TOK/S", "MEMORY", "KV", "WAITING"][:missing]
    for size, row in zip((1, 2), rows, strict=True):
        assert f"-{size}B-Instruct  ready" in row and row.count("…") == (width < 140) and len(row) <= width


def test_one_picture_of_a_server_that_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, smollm2_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(monkeypatch, tmp_path, Script(model_dir=str(smollm2_dir), token_ids=[504])) as server:
        assert post(server, **body("one")).status_code == 200
        residency = server.server.fleet.residency
        wait_until(lambda: (need := residency.grants.of("one")) and need.is_measured)  # and shown as what it takes
        assert main(["top", "--once", "--url", server.url]) == 0
        text = capsys.readouterr().out
        assert main(["top", "--url", server.url]) == 0, "what is no terminal gets one picture too"
        assert capsys.readouterr().out.splitlines()[2:] == text.splitlines()[2:]
    assert "0 requests, 0 refused" in text and "ms in all" in text
    assert "one" in text and "ready" in text and "two" in text and "unloaded" in text


class Scripted(BaseHTTPRequestHandler):
    """Answers with one model that has made a hundred tokens."""

    def do_GET(self) -> None:
        models = {"data": [{"id": "m", "state": "ready", "memory_bytes": None}]}
        counts = 'headrace_generation_tokens_total{model="m"} 100\n'
        body = (counts if self.path == "/metrics" else json.dumps(models)).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


@contextmanager
def scripted(port: int = 0) -> Iterator[int]:
    with HTTPServer(("127.0.0.1", port), Scripted) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_a_server_that_is_away_for_a_while_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "SECONDS", 0.1)
    with scripted() as port:
        client = RunningServer(f"http://127.0.0.1:{port}")
        seen = pictures(client, iter(range(10)).__next__, lambda: 140)
        assert "ready" in shown(next(seen))
    said = f"does not answer, and is asked again every second: http://127.0.0.1:{port} cannot be asked: "
    assert said + "Connection refused" in shown(next(seen))
    with socket.create_server(("127.0.0.1", port)):  # somebody listens, and answers nothing
        for _ in range(2):
            away = shown(next(seen))
            assert said + "timed out" in away and "This was seen last:" in away and "ready" in away
    with scripted(port):
        back = shown(next(seen))
        assert "does not answer" not in back and "ready" in back and "100.0" not in back
        assert "does not answer" not in shown(next(seen))
    seen.close()


def test_a_server_that_cannot_be_asked_at_first_is_an_error() -> None:
    with RunningServer("http://127.0.0.1:1") as nobody, pytest.raises(RemoteError, match="cannot be asked"):
        next(pictures(nobody, float, lambda: 140))
