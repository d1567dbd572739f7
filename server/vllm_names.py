"""The series that vLLM has too, under its names, so that dashboards made for it show this server.

Only those that mean the same are here. The label is `model_name`; there is no `engine`, of which a model has one.
"""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_SAME = {
    "num_requests_running": "requests_running",
    "num_requests_waiting": "requests_waiting",
    "num_preemptions": "preemptions",
    "generation_tokens": "generation_tokens",
    "prefix_cache_hits": "prompt_tokens_cached",
    "time_to_first_token_seconds": "time_to_first_token_seconds",
    "inter_token_latency_seconds": "inter_token_seconds",
    "time_per_output_token_seconds": "inter_token_seconds",  # what it was called before
    "e2e_request_latency_seconds": "request_duration_seconds",
    "request_queue_time_seconds": "queue_seconds",
    "request_prefill_time_seconds": "prefill_seconds",
    "request_decode_time_seconds": "decode_seconds",
    "request_prompt_tokens": "prompt_length_tokens",
    "request_generation_tokens": "answer_length_tokens",
}
"""By vLLM's name without its prefix, the name of ours without our prefix, which is of the same kind."""
_ENDS = {
    "stop": "stop", "tool_calls": "stop", "function_call": "stop", "length": "length", "error": "error",
    "abort": "abort",
}  # fmt: skip
"""Our reasons by which choices end, as vLLM's engine has them: it knows nothing of calls."""

_Values = dict[str, float]


def under_vllm_names(families: list[Metric]) -> list[Metric]:
    """What of these families is there under vLLM's names too."""
    ours = {family.name.removeprefix("headrace_"): family for family in families}
    return [*(_renamed(ours[name], alias) for alias, name in _SAME.items()), *_made(ours)]


def _renamed(family: Metric, alias: str) -> Metric:
    name = f"vllm:{alias}"
    copy = Metric(name, f"As {_full_name(family)}.", family.type)
    for sample in family.samples:
        labels = {"model_name" if key == "model" else key: value for key, value in sample.labels.items()}
        copy.add_sample(sample.name.replace(family.name, name, 1), labels, sample.value)
    return copy


def _made(ours: Mapping[str, Metric]) -> Iterator[Metric]:
    """Those that are put together of several of ours."""
    blocks = "Blocks that are owned, as a share of all (headrace_kv_blocks)."
    for name in ("kv_cache_usage_perc", "gpu_cache_usage_perc"):  # the latter is what it was called before
        yield _of_models(GaugeMetricFamily, name, blocks, _usage(ours["kv_blocks"]))
    computed, cached = _by_model(ours["prompt_tokens_computed"]), _by_model(ours["prompt_tokens_cached"])
    prompts = {model: value + cached[model] for model, value in computed.items()}
    text = "As headrace_prompt_tokens_computed_total and headrace_prompt_tokens_cached_total together."
    for name in ("prompt_tokens", "prefix_cache_queries"):
        yield _of_models(CounterMetricFamily, name, text, prompts)
    ends = CounterMetricFamily(
        "vllm:request_success",
        "As headrace_choices_finished_total, calls being among what stopped.",
        labels=("model_name", "finished_reason"),
    )
    for (model, reason), count in _ended(ours["choices_finished"]).items():
        ends.add_metric((model, reason), count)
    yield ends


def _of_models(
    kind: Callable[..., GaugeMetricFamily | CounterMetricFamily], name: str, text: str, values: _Values
) -> Metric:
    family = kind(f"vllm:{name}", text, labels=("model_name",))
    for model, value in values.items():
        family.add_metric((model,), value)
    return family


def _by_model(family: Metric) -> _Values:
    return {sample.labels["model"]: sample.value for sample in family.samples}


def _usage(blocks: Metric) -> _Values:
    found = {(sample.labels["model"], sample.labels["state"]): sample.value for sample in blocks.samples}
    return {
        model: found[model, "owned"] / total if total else 0.0
        for (model, state), total in found.items()
        if state == "total"
    }


def _ended(family: Metric) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    for sample in family.samples:
        key = sample.labels["model"], _ENDS[sample.labels["finish_reason"]]
        found[key] = found.get(key, 0.0) + sample.value
    return found


def _full_name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else str(family.name)
