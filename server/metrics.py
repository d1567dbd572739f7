"""What /metrics says, in the Prometheus text format.

The set of series is fixed: labels are names of this server's models and keys and words from this file, never words of
a request.
Nothing is counted here: what others have counted is read when somebody asks.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgspec
from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from engine.messages import EngineStats
from server.fleet.handle import EngineHandle
from server.fleet.residency import Residency
from server.images.service import ImageService
from server.telemetry.counters import Histogram, ModelCounters, ServerCounters
from server.vllm_names import under_vllm_names

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_WAITING = "Sequences that wait for their first step or were preempted, and requests that wait for their model."
_ENGINE_GAUGES = (
    ("requests_running", "num_running", "Sequences in the engine's steps."),
    ("requests_waiting", "num_waiting", _WAITING),
)
_ENGINE_COUNTERS = (
    ("engine_steps", "steps", "Steps of the engine."),
    ("prompt_tokens_computed", "prompt_tokens", "Prompt tokens computed."),
    ("prompt_tokens_cached", "cached_tokens", "Prompt tokens the prefix cache spared."),
    ("generation_tokens", "generation_tokens", "Tokens generated."),
    ("preemptions", "preemptions", "Sequences that gave their blocks back to be computed again."),
    ("requests_aborted", "aborted", "Sequences aborted by the server or its clients."),
    ("image_encode_seconds", "encode_seconds", "Time the engine spent on encoding images, as its host sees it."),
    ("requests_failed", "failed", "Sequences that ended with an error."),
)
_OF_REQUESTS = (
    ("time_to_first_token_seconds", "first_token", "From the request's arrival to its first token."),
    ("request_duration_seconds", "duration", "From the request's arrival to the end of its answer."),
    ("queue_seconds", "queue", "From the request's arrival in the engine to its first step, compiling included."),
    ("prefill_seconds", "prefill", "From the request's first step to its first token."),
    ("decode_seconds", "decode", "From the request's first token to its last."),
    ("inter_token_seconds", "between_tokens", "Between tokens of a choice; equal parts for tokens that came together."),
    ("grammar_compile_seconds", "compile", "What requests with a constraint waited until it was compiled or refused."),
    ("prompt_length_tokens", "prompt_length", "Tokens of the prompts that were answered."),
    ("answer_length_tokens", "answer_length", "Tokens of the choices that ended."),
)
_OF_KEYS = (
    ("key_requests", "requests", "POST requests that came with the key, answered or refused."),
    ("key_requests_limited", "limited", "Those that the key's limits refused."),
    ("key_prompt_tokens", "prompt_tokens", "Prompt tokens as told in usage."),
    ("key_completion_tokens", "completion_tokens", "Answer tokens as told in usage."),
)
_RELAXED_REQUESTS = "Answers to requests of whose schemas, not strict, keywords were left out."
_RELAXED_KEYWORDS = "Keywords left out of schemas that are not strict, as x-headrace-relaxed tells them."
_BLOCK_STATES = ("free", "cached", "owned", "total")


class _Page(Collector):
    """What the library asks for the families to write."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


_process = ProcessCollector(registry=None)


@dataclass(frozen=True, slots=True)
class Gathered:
    """What the page is made of: single numbers as they were, and histograms, which may go on growing."""

    families: list[Metric]
    models: Mapping[str, ModelCounters]
    images: ImageService


def gather(
    handles: Iterable[EngineHandle],
    counters: ServerCounters,
    in_flight: int,
    images: ImageService | None = None,
    residency: Residency | None = None,
) -> Gathered:
    """Read what there is; takes some microseconds for a model, in the thread that counts."""
    handles = list(handles)
    families = [
        *_model_part(handles),
        *_engine_part(handles),
        *_memory_part(residency),
        *_server_part(counters, in_flight),
        *_key_part(counters),
    ]
    return Gathered(families, {handle.name: counters.of(handle.name) for handle in handles}, images or ImageService())


def exposition(gathered: Gathered, *, aliases: bool = True) -> str:
    """The page; with `aliases` what vLLM counts too is there under its names as well.

    Takes milliseconds for a model, and may be called in any thread: what is counted meanwhile is on the page or not.
    """
    families = [*gathered.families, *_request_part(gathered.models), *_image_part(gathered.images)]
    if aliases:
        families += under_vllm_names(families)
    return generate_latest(_Page([*families, *_process.collect()])).decode()


def _model_part(handles: list[EngineHandle]) -> Iterator[Metric]:
    live = {handle.name: int(handle.is_live) for handle in handles}
    yield _gauge("model_ready", "Whether the model is loaded and its engine answers.", live)
    loads = {handle.name: handle.supervision.loads for handle in handles}
    yield _counter("model_loads", "Loads of the model since the server was started.", loads)
    seconds = {handle.name: handle.supervision.load_seconds for handle in handles}
    yield _gauge("model_load_seconds", "What the last load of the model took.", seconds)
    restarts = {handle.name: handle.supervision.restarts for handle in handles}
    yield _counter("engine_restarts", "Starts of the engine process after a death.", restarts)


def _engine_part(handles: list[EngineHandle]) -> Iterator[Metric]:
    stats = {handle.name: _stats(handle) for handle in handles}
    for name, attribute, text in _ENGINE_GAUGES:
        yield _gauge(name, text, {model: getattr(value, attribute) for model, value in stats.items()})
    for name, attribute, text in _ENGINE_COUNTERS:
        yield _counter(name, text, {model: getattr(value, attribute) for model, value in stats.items()})
    blocks = GaugeMetricFamily(
        "headrace_kv_blocks", "KV blocks by state; free, cached and owned add up to total.", labels=("model", "state")
    )
    for model, value in stats.items():
        for state in _BLOCK_STATES:
            blocks.add_metric((model, state), getattr(value, f"blocks_{state}"))
    yield blocks


def _stats(handle: EngineHandle) -> EngineStats:
    """What its engines have counted; who waits for its load has not come to one yet."""
    stats = handle.supervision.stats
    return msgspec.structs.replace(stats, num_waiting=stats.num_waiting + len(handle.holders.waiting))


def _memory_part(residency: Residency | None) -> Iterator[Metric]:
    budgets = residency.grants.budgets if residency is not None else {}
    taken = {device: residency.grants.taken(device) for device in budgets} if residency is not None else {}
    yield _gauge("memory_budget_bytes", "What all models of a device may take together.", budgets, "device")
    yield _gauge("memory_granted_bytes", "What models that are loaded or loading have of it.", taken, "device")


def _request_part(models: Mapping[str, ModelCounters]) -> Iterator[Metric]:
    finishes = CounterMetricFamily(
        "headrace_choices_finished", "Choices by how they ended.", labels=("model", "finish_reason")
    )
    for model, counters in models.items():
        for reason, count in counters.finishes.items():
            finishes.add_metric((model, reason), count)
    yield finishes
    for name, attribute, text in _OF_REQUESTS:
        family = HistogramMetricFamily(f"headrace_{name}", text, labels=("model",))
        for model, counters in models.items():
            _add(family, (model,), getattr(counters, attribute))
        yield family


def _server_part(counters: ServerCounters, in_flight: int) -> Iterator[Metric]:
    responses = CounterMetricFamily("headrace_http_responses", "Responses by status class.", labels=("status",))
    for hundred, count in counters.responses.items():
        responses.add_metric((f"{hundred}xx",), count)
    yield responses
    yield GaugeMetricFamily("headrace_requests_in_flight", "Choices admitted and not yet answered.", in_flight)
    for name, text, value in (
        ("requests_refused", "Requests refused because the server was full.", counters.refused),
        ("requests_disconnected", "Requests whose client left early.", counters.disconnected),
        ("answered_prompt_tokens", "Prompt tokens as told in usage.", counters.prompt_tokens),
        ("answered_completion_tokens", "Answer tokens as told in usage.", counters.completion_tokens),
        ("requests_relaxed", _RELAXED_REQUESTS, counters.relaxed_requests),
        ("keywords_relaxed", _RELAXED_KEYWORDS, counters.relaxed_keywords),
    ):
        yield CounterMetricFamily(f"headrace_{name}", text, value)


def _key_part(counters: ServerCounters) -> Iterator[Metric]:
    for name, attribute, text in _OF_KEYS:
        yield _counter(name, text, {key: getattr(value, attribute) for key, value in counters.keys.items()}, "key")


def _image_part(images: ImageService) -> Iterator[Metric]:
    for name, text, found in (
        ("image_fetch_seconds", "Until the bytes of a request's images were here.", images.fetching),
        ("image_decode_seconds", "From then on until all of them were ready for the engine.", images.decoding),
    ):
        family = HistogramMetricFamily(f"headrace_{name}", text, labels=())
        _add(family, (), found)
        yield family


def _gauge(name: str, text: str, values: Mapping[str, float], label: str = "model") -> Metric:
    family = GaugeMetricFamily(f"headrace_{name}", text, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family


def _counter(name: str, text: str, values: Mapping[str, float], label: str = "model") -> Metric:
    family = CounterMetricFamily(f"headrace_{name}", text, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], found: Histogram) -> None:
    seen, buckets = 0, []
    for bound, count in zip((*map(str, found.bounds), "+Inf"), found.counts, strict=True):
        seen += count
        buckets.append((bound, seen))
    family.add_metric(labels, buckets, sum_value=found.total)
