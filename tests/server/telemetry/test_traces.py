"""Spans of requests, kept in memory or sent to a collector."""

import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from engine.errors import ConfigError
from server.telemetry import traces
from server.telemetry.record import RequestRecord
from tests.clocks import PATIENCE
from tests.server import patient
from tests.server.fakes import RunningServer, Script, running_server, wait_until

PARENT = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(traces, "span_processor", lambda endpoint: SimpleSpanProcessor(exporter))
    return exporter


@pytest.fixture
def server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, smollm2_dir: Path, exporter: InMemorySpanExporter
) -> Iterator[RunningServer]:
    script = Script(model_dir=str(smollm2_dir), token_ids=[504], step_seconds=0.002, queue_seconds=0.0)
    with running_server(monkeypatch, tmp_path, script, traces="http://collector/v1/traces") as running:
        yield running


def ask(server: RunningServer, headers: dict[str, str] | None = None, **more: Any) -> int:
    body = {"messages": [{"role": "user", "content": "the word is xyzzy"}], "max_tokens": 5, **more}
    return int(patient.post(f"{server.url}/v1/chat/completions", json=body, headers=headers or {}).status_code)


def spans(exporter: InMemorySpanExporter, count: int) -> list[ReadableSpan]:
    wait_until(lambda: len(exporter.get_finished_spans()) >= count)
    return list(exporter.get_finished_spans())


def test_a_span_has_the_stages_of_its_request(server: RunningServer, exporter: InMemorySpanExporter) -> None:
    assert ask(server, {"traceparent": PARENT, "tracestate": "vendor=1"}, stream=True) == 200
    (span,) = spans(exporter, 1)
    assert span.name == "POST /v1/chat/completions" and span.kind is SpanKind.SERVER
    assert span.parent is not None and span.parent.span_id == 0x0123456789ABCDEF
    assert span.context is not None and span.context.trace_id == 0x0123456789ABCDEF0123456789ABCDEF
    assert span.context.trace_state.get("vendor") == "1"
    events = [(event.name, event.timestamp) for event in span.events]
    assert [name for name, _ in events] == ["queue", "prefill", "decode"]
    times = [span.start_time or 0, *(at for _, at in events), span.end_time or 0]
    assert times == sorted(times) and times[0] > 0
    assert span.attributes is not None and span.attributes["gen_ai.request.model"] == "fake"
    assert span.attributes["gen_ai.usage.output_tokens"] == 5
    assert span.attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert "xyzzy" not in span.to_json() and span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("parent", [None, "nonsense", "00-" + 32 * "0" + "-" + 16 * "0" + "-01"])
def test_without_a_valid_parent_a_trace_begins_here(
    server: RunningServer, exporter: InMemorySpanExporter, parent: str | None
) -> None:
    assert ask(server, {} if parent is None else {"traceparent": parent}) == 200
    (span,) = spans(exporter, 1)
    assert span.parent is None and span.context is not None and span.context.trace_id


def test_a_parent_that_is_not_sampled_has_no_spans(server: RunningServer, exporter: InMemorySpanExporter) -> None:
    assert ask(server, {"traceparent": PARENT[:-1] + "0"}) == 200 == ask(server)
    assert len(spans(exporter, 1)) == 1


def test_probes_have_no_spans_and_refusals_no_stages(server: RunningServer, exporter: InMemorySpanExporter) -> None:
    for path in ("/health", "/metrics", "/livez"):
        assert patient.get(f"{server.url}{path}").status_code == 200
    assert ask(server, max_tokens=-1) == 400
    (span,) = spans(exporter, 1)
    assert not span.events and span.attributes is not None and span.attributes["http.response.status_code"] == 400
    assert span.attributes["error.type"] == "invalid_value"


@contextmanager
def collector(bodies: list[bytes]) -> Iterator[str]:
    """A collector that keeps what it gets, and its address."""

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/traces"
        finally:
            server.shutdown()
            thread.join()


def test_spans_go_to_a_collector(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, smollm2_dir: Path) -> None:
    bodies: list[bytes] = []
    script = Script(model_dir=str(smollm2_dir), token_ids=[504])
    with collector(bodies) as url, running_server(monkeypatch, tmp_path, script, traces=url) as server:
        assert ask(server) == 200
    assert any(b"gen_ai.request.model" in body for body in bodies), "the end of the server sends what is left"


def a_record() -> RequestRecord:
    record = RequestRecord("req-1", "GET", "/v1/models")
    record.end(200)
    return record


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


def test_a_collector_that_is_away_has_one_line_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(traces, "EXPORT_SECONDS", 2.0)  # time to try again once, of which OpenTelemetry has a line
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processor = traces.span_processor(f"http://127.0.0.1:{port}/v1/traces")
    spans = traces.Traces(processor, "1")
    for _ in range(2):
        spans.report(a_record())
        assert processor.force_flush()
    (line,) = lines(caplog)
    assert line.startswith("WARNING the collector does not take spans, which are lost: ") and str(port) in line
    spans.close()


class FailsAtTimes(InMemorySpanExporter):
    """An exporter to which a collector answers so, and that tells of each failure twice."""

    def __init__(self, *answers: bool) -> None:
        super().__init__()
        self._answers = iter(answers)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if next(self._answers):
            return SpanExportResult.SUCCESS
        logging.getLogger(__name__).warning("the\nreason")
        logging.getLogger(__name__).error("failed")
        return SpanExportResult.FAILURE


def test_each_time_that_it_goes_and_comes_back_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    answers = (True, False, False, True, True, False)
    delivery = traces.Delivery(FailsAtTimes(*answers))
    assert [delivery.export([]) is SpanExportResult.SUCCESS for _ in answers] == list(answers)
    gone = "WARNING the collector does not take spans, which are lost: the reason"
    assert lines(caplog) == [gone, "INFO the collector takes spans again", gone]
    delivery.shutdown()
    logging.getLogger(__name__).warning("somebody else's")
    assert lines(caplog)[3:] == ["WARNING somebody else's"]


def test_the_end_does_not_wait_long_for_a_collector_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(traces, "EXPORT_SECONDS", PATIENCE)
    monkeypatch.setattr(traces, "END_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        spans = traces.open_traces(f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces", "1")
        spans.report(a_record())
        began = time.monotonic()
        spans.close()
        assert time.monotonic() - began < PATIENCE / 4
    assert "did not take the last spans within 0.1 s" in caplog.text


def test_a_server_without_the_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry.sdk")] + ["opentelemetry.sdk.trace"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match="OpenTelemetry") as caught:
        traces.open_traces("http://localhost:4318/v1/traces", "1")
    assert "headrace[otel]" in str(caught.value.hint)


def test_what_is_no_address_of_a_collector_is_said_at_the_start() -> None:
    with pytest.raises(ConfigError, match="'localhost:4318' is no address of a collector"):
        traces.open_traces("localhost:4318", "1")
