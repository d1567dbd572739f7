"""What /metrics says: in a format that Prometheus reads, with series that do not come from requests."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from prometheus_client.parser import text_string_to_metric_families

from tests.server import patient
from tests.server.fakes import RunningServer, Script, running_server, wait_ready, wait_until

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def script(smollm2_dir: Path) -> Script:
    return Script(model_dir=str(smollm2_dir), token_ids=[504], queue_seconds=0.25)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> Iterator[RunningServer]:
    with running_server(monkeypatch, tmp_path, script) as running:
        yield running


def ask(server: RunningServer, **more: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, **more}
    answer: dict[str, Any] = patient.post(f"{server.url}/v1/chat/completions", json=body).json()
    return answer


def series(server: RunningServer) -> Series:
    families = text_string_to_metric_families(patient.get(f"{server.url}/metrics").text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(found: Series, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def test_requests_are_counted_by_model_under_both_names(server: RunningServer) -> None:
    used = [ask(server)["usage"], ask(server, n=2)["usage"]]
    found = series(server)
    ours, theirs = {"model": "fake"}, {"model_name": "fake"}
    prompts = sum(one["prompt_tokens"] for one in used)
    for name, alias, count, total in (
        ("queue_seconds", "request_queue_time_seconds", 2, 0.5),
        ("prompt_length_tokens", "request_prompt_tokens", 2, prompts),
        ("answer_length_tokens", "request_generation_tokens", 3, 15),
    ):
        assert value(found, f"headrace_{name}_count", **ours) == value(found, f"vllm:{alias}_count", **theirs) == count
        assert value(found, f"headrace_{name}_sum", **ours) == value(found, f"vllm:{alias}_sum", **theirs) == total
        assert value(found, f"vllm:{alias}_bucket", **theirs, le="+Inf") == count
    for name, alias, count in (
        ("time_to_first_token_seconds", "time_to_first_token_seconds", 2),
        ("request_duration_seconds", "e2e_request_latency_seconds", 2),
        ("prefill_seconds", "request_prefill_time_seconds", 2),
        ("decode_seconds", "request_decode_time_seconds", 2),
    ):
        assert value(found, f"headrace_{name}_count", **ours) == value(found, f"vllm:{alias}_count", **theirs) == count
    between = value(found, "headrace_inter_token_seconds_count", **ours)
    for alias in ("inter_token_latency_seconds", "time_per_output_token_seconds"):
        assert value(found, f"vllm:{alias}_count", **theirs) == between <= 12, "none of what came with a first token"
    for name in ("prompt_tokens_total", "prefix_cache_queries_total"):
        assert value(found, f"vllm:{name}", **theirs) == prompts
    assert value(found, "vllm:generation_tokens_total", **theirs) == 15
    assert value(found, "headrace_choices_finished_total", **ours, finish_reason="length") == 3
    assert value(found, "vllm:request_success_total", **theirs, finished_reason="length") == 3
    assert value(found, "vllm:kv_cache_usage_perc", **theirs) == value(found, "vllm:gpu_cache_usage_perc", **theirs)
    assert value(found, "headrace_model_load_seconds", **ours) > 0 < value(found, "process_open_fds")


def test_tokens_behind_the_first_are_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    gate = tmp_path / "gate"
    held = structs.replace(script, holds={-1: 1}, gate=str(gate))
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "stream": True}
    with running_server(monkeypatch, tmp_path, held) as server:
        with patient.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
            lines = (line for line in answer.iter_lines() if line.startswith("data: {"))
            next(line for line in lines if json.loads(line[6:])["choices"][0]["delta"].get("content"))
            gate.touch()
            list(lines)
        assert value(series(server), "headrace_inter_token_seconds_count", model="fake") == 4


def test_no_request_makes_a_series(server: RunningServer) -> None:
    ask(server)
    before = series(server).keys()
    ask(server, model="no/such/model")
    ask(server, user="x" * 50, stop=["y"], seed=7)
    patient.get(f"{server.url}/whatever/{'x' * 50}", headers={"X-Request-Id": "mine"})
    assert series(server).keys() == before


def test_their_names_can_be_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    with running_server(monkeypatch, tmp_path, script, vllm_names=False) as server:
        assert not [name for name, _ in series(server) if name.startswith("vllm")]


def test_counters_of_an_engine_outlive_it(server: RunningServer) -> None:
    name = "headrace_generation_tokens_total"
    ask(server)
    wait_until(lambda: value(series(server), name, model="fake") == 5)
    assert server.handle.pid is not None
    os.kill(server.handle.pid, signal.SIGKILL)
    wait_until(lambda: value(series(server), "headrace_engine_restarts_total", model="fake") == 1)
    wait_ready(server.url)
    assert value(series(server), name, model="fake") == 5
    ask(server)
    wait_until(lambda: value(series(server), name, model="fake") == 10)
    assert value(series(server), "headrace_kv_blocks", model="fake", state="total") == 4096
