"""Traces of requests for OpenTelemetry: a span for each, with its stages as events.

The packages are an extra (`headrace[otel]`) and are imported only where traces are asked for. A span is made when its
request has been answered, from what was written down of it, so tracing costs nothing while an answer goes on.
"""

import logging
import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from engine.errors import ConfigError
from server.telemetry.record import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

logger = logging.getLogger(__name__)

EXPORT_SECONDS = 5.0
"""What the collector gets for an answer."""
END_SECONDS = 2.0
"""What the end of the server waits for it."""
MAX_REASON_CHARS = 300
_QUEUE_LOGGER = "opentelemetry.sdk._shared_internal"
"""Says that spans are dropped, because too many wait for the collector."""
_NANO = 1_000_000_000


class Traces:
    """Makes spans of records; what becomes of the spans is the processor's business."""

    def __init__(self, processor: "SpanProcessor", version: str) -> None:
        """`version` is this program's."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "headrace"}
        # Of its own, not the process's: nothing else that may be traced here gets mixed up with it.
        self._provider = TracerProvider(
            resource=Resource.create({**named, "service.version": version}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("headrace", version)
        self._propagator = TraceContextTextMapPropagator()

    def report(self, record: RequestRecord) -> None:
        """Make the span of a request: a child of what its `traceparent` names, if it has a valid one."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        carrier = {"traceparent": record.traceparent, "tracestate": record.tracestate}
        parent = self._propagator.extract({name: value for name, value in carrier.items() if value is not None})
        span = self._tracer.start_span(
            f"{record.method} {record.target}",
            context=parent,
            kind=SpanKind.SERVER,
            start_time=record.began_at,
            attributes=_attributes(record),
        )
        for name, seconds in _stages(record):
            span.add_event(name, timestamp=_at(record, seconds))
        if record.status >= 500 or "error" in record.finish:
            span.set_status(Status(StatusCode.ERROR))
        span.end(_at(record, record.seconds))

    def close(self) -> None:
        """Send what is left; waits for that, though not for long, so call it in a thread."""
        # OpenTelemetry's own end gives the collector all the time of an answer, or more.
        closing = threading.Thread(target=self._provider.shutdown, name="traces-end", daemon=True)
        closing.start()
        closing.join(END_SECONDS)
        if closing.is_alive():
            logger.warning("the collector did not take the last spans within %g s", END_SECONDS)


class Delivery:
    """An exporter that says once when it begins to fail, and once when it works again.

    What the exporter within logs is kept back: that is several lines for each batch, as long as the collector is away.
    """

    def __init__(self, exporter: "SpanExporter") -> None:
        self._exporter = exporter
        self._fails = False
        self._why = ""
        self._loggers = [logging.getLogger(name) for name in (type(exporter).__module__, _QUEUE_LOGGER)]
        for kept in self._loggers:
            kept.addFilter(self._passes)

    def export(self, spans: "Sequence[ReadableSpan]") -> "SpanExportResult":
        """Send spans, and note what became of that."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        self._why = ""
        result = self._exporter.export(spans)
        failed = result is not SpanExportResult.SUCCESS
        if failed and not self._fails:
            logger.warning("the collector does not take spans, which are lost: %s", self._why or "no reason given")
        elif self._fails and not failed:
            logger.info("the collector takes spans again")
        self._fails = failed
        return result

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what waits here, which is nothing of this class's own."""
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self) -> None:
        """End the exporter."""
        self._exporter.shutdown()
        for kept in self._loggers:
            kept.removeFilter(self._passes)

    def _passes(self, record: logging.LogRecord) -> bool:
        """Whether a line of OpenTelemetry's goes to the log; the first that does not is the reason of a failure."""
        if record.levelno < logging.WARNING or (record.name == _QUEUE_LOGGER and not self._fails):
            return True
        self._why = self._why or " ".join(record.getMessage().split())[:MAX_REASON_CHARS]
        return False


def open_traces(endpoint: str, version: str) -> Traces:
    """Traces that go to a collector, by OTLP over HTTP. Raises `ConfigError` if the packages are missing, or if that is
    no address.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError(
            f"{endpoint!r} is no address of a collector", hint="for example http://localhost:4318/v1/traces"
        )
    try:
        return Traces(span_processor(endpoint), version)
    except ImportError as error:
        hint = "they come with headrace[otel]: .venv/bin/pip install -e '.[otel]'"
        raise ConfigError("traces need OpenTelemetry's packages", hint=hint) from error


def span_processor(endpoint: str) -> "SpanProcessor":
    """What sends spans to a collector, many at a time and in a thread of its own."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    delivery = Delivery(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_SECONDS))
    return BatchSpanProcessor(cast("SpanExporter", delivery))  # it is one in all but its class, which is not here yet


def _attributes(record: RequestRecord) -> dict[str, Any]:
    """Under the names of OpenTelemetry's conventions for HTTP and for generative models, as far as they have some."""
    known = {
        "http.request.method": record.method,
        "url.path": record.target,
        "http.response.status_code": record.status or None,
        "headrace.request_id": record.request_id,
        "headrace.key": record.key,
        "headrace.stream": record.stream,
        "gen_ai.request.model": record.model,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "headrace.cached_tokens": record.cached_tokens,
        "gen_ai.response.finish_reasons": record.finish or None,
        "error.type": record.error,
        "headrace.error_reason": record.reason,
    }
    return {name: value for name, value in known.items() if value is not None}


def _stages(record: RequestRecord) -> list[tuple[str, float]]:
    """When which stage began, in seconds from the request's beginning."""
    stages = []
    if record.submitted is not None:
        stages.append(("queue", record.submitted))
        if record.queue is not None:
            stages.append(("prefill", record.submitted + record.queue))
    if record.first_token is not None:
        stages.append(("decode", record.first_token))
    return stages


def _at(record: RequestRecord, seconds: float) -> int:
    return record.began_at + int(seconds * _NANO)
