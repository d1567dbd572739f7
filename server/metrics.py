"""What /metrics says, in the Prometheus text format.

The set of series is fixed: labels are model names of this server and words from this file, never words of a request.
"""

from collections.abc import Iterable, Mapping

from engine.messages import EngineStats
from server.edge.counters import ServerCounters
from server.fleet.handle import EngineHandle
from server.fleet.residency import Residency
from server.images.service import ImageService

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_ENGINE_GAUGES = (
    ("requests_running", "num_running", "Sequences in the engine's steps."),
    ("requests_waiting", "num_waiting", "Sequences that wait for their first step or were preempted."),
)
_ENGINE_COUNTERS = (
    ("engine_steps_total", "steps", "Steps of the engine since it was started."),
    ("prompt_tokens_computed_total", "prompt_tokens", "Prompt tokens computed."),
    ("prompt_tokens_cached_total", "cached_tokens", "Prompt tokens the prefix cache spared."),
    ("generation_tokens_total", "generation_tokens", "Tokens generated."),
    ("preemptions_total", "preemptions", "Sequences that gave their blocks back to be computed again."),
    ("requests_aborted_total", "aborted", "Sequences aborted by the server or its clients."),
    ("image_encode_seconds_total", "encode_seconds", "Time the engine spent on encoding images, as its host sees it."),
    ("requests_failed_total", "failed", "Sequences that ended with an error."),
)
_RELAXED_REQUESTS = "Answers to requests of whose schemas, not strict, keywords were left out."
_RELAXED_KEYWORDS = "Keywords left out of schemas that are not strict, as x-headrace-relaxed tells them."
_BLOCK_STATES = ("free", "cached", "owned", "total")


def exposition(
    handles: Iterable[EngineHandle],
    counters: ServerCounters,
    in_flight: int,
    images: ImageService | None = None,
    residency: Residency | None = None,
) -> str:
    """The page."""
    handles = list(handles)
    lines: list[str] = []
    _engine_part(lines, handles)
    _memory_part(lines, residency)
    _server_part(lines, counters, in_flight)
    _image_part(lines, images or ImageService())
    return "\n".join(lines) + "\n"


def _engine_part(lines: list[str], handles: list[EngineHandle]) -> None:
    stats = {handle.name: handle.client.stats if handle.client else EngineStats() for handle in handles}
    live = {handle.name: int(handle.is_live) for handle in handles}
    restarts = {handle.name: handle.restarts for handle in handles}
    _family(lines, "model_ready", "gauge", "Whether the model is loaded and its engine answers.", live)
    loads = {handle.name: handle.loads for handle in handles}
    _family(lines, "model_loads_total", "counter", "Loads of the model since the server was started.", loads)
    _family(lines, "engine_restarts_total", "counter", "Starts of the engine process after a death.", restarts)
    for kind, table in (("gauge", _ENGINE_GAUGES), ("counter", _ENGINE_COUNTERS)):
        for name, attribute, text in table:
            _family(lines, name, kind, text, {model: getattr(value, attribute) for model, value in stats.items()})
    _head(lines, "kv_blocks", "gauge", "KV blocks by state; free, cached and owned add up to total.")
    for model, value in stats.items():
        for state in _BLOCK_STATES:
            label = _escape(model)
            lines.append(f'headrace_kv_blocks{{model="{label}",state="{state}"}} {getattr(value, f"blocks_{state}")}')


def _memory_part(lines: list[str], residency: Residency | None) -> None:
    budgets = residency.budgets if residency is not None else {}
    for name, text, values in (
        ("memory_budget_bytes", "What all models of a device may take together.", budgets),
        (
            "memory_granted_bytes",
            "What models that are loaded or loading have of it.",
            {device: residency.taken(device) for device in budgets} if residency is not None else {},
        ),
    ):
        _head(lines, name, "gauge", text)
        lines.extend(f'headrace_{name}{{device="{device}"}} {value}' for device, value in values.items())


def _server_part(lines: list[str], counters: ServerCounters, in_flight: int) -> None:
    _head(lines, "http_responses_total", "counter", "Responses by status class.")
    for hundred, count in counters.responses.items():
        lines.append(f'headrace_http_responses_total{{status="{hundred}xx"}} {count}')
    for name, kind, text, value in (
        ("requests_in_flight", "gauge", "Choices admitted and not yet answered.", in_flight),
        ("requests_refused_total", "counter", "Requests refused because the server was full.", counters.refused),
        ("requests_disconnected_total", "counter", "Requests whose client left early.", counters.disconnected),
        ("answered_prompt_tokens_total", "counter", "Prompt tokens as told in usage.", counters.prompt_tokens),
        ("answered_completion_tokens_total", "counter", "Answer tokens as told in usage.", counters.completion_tokens),
        ("requests_relaxed_total", "counter", _RELAXED_REQUESTS, counters.relaxed_requests),
        ("keywords_relaxed_total", "counter", _RELAXED_KEYWORDS, counters.relaxed_keywords),
    ):
        _head(lines, name, kind, text)
        lines.append(f"headrace_{name} {value}")
    _head(lines, "time_to_first_token_seconds", "histogram", "From the request's arrival to its first token.")
    lines.extend(counters.first_token.lines("headrace_time_to_first_token_seconds"))
    _head(lines, "request_duration_seconds", "histogram", "From a chat request's arrival to the end of its answer.")
    lines.extend(counters.duration.lines("headrace_request_duration_seconds"))


def _image_part(lines: list[str], images: ImageService) -> None:
    for name, text, found in (
        ("image_fetch_seconds", "Until the bytes of a request's images were here.", images.fetching),
        ("image_decode_seconds", "From then on until all of them were ready for the engine.", images.decoding),
    ):
        _head(lines, name, "histogram", text)
        lines.extend(found.lines(f"headrace_{name}"))


def _family(lines: list[str], name: str, kind: str, text: str, values: Mapping[str, float]) -> None:
    _head(lines, name, kind, text)
    for model, value in values.items():
        lines.append(f'headrace_{name}{{model="{_escape(model)}"}} {value}')


def _head(lines: list[str], name: str, kind: str, text: str) -> None:
    lines.append(f"# HELP headrace_{name} {text}")
    lines.append(f"# TYPE headrace_{name} {kind}")


def _escape(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
