"""What an operator sees of a real server that has answered real requests: the dashboard's series, lines, spans."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.places import ROOT
from tests.server import patient
from tests.serving import server_process, write_models

DASHBOARD = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text(encoding="utf-8"))
TINY = (
    "random://qwen2?hidden_size=64&num_hidden_layers=2&vocab_size=300&intermediate_size=128&num_attention_heads=4"
    "&num_key_value_heads=4"
)
KEY = "plugh"
NAME = re.compile(r"\b(?:headrace_|vllm:|process_)\w+")
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}


@dataclass(frozen=True)
class Seen:
    """What a server has left behind."""

    names: set[str]
    """Of the series with values."""
    metrics: dict[str, float]
    """Values of the model's series by name, added up over the other labels."""
    lines: list[dict[str, Any]]
    """Of the log."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    directory = tmp_path_factory.mktemp("seeing")
    log = directory / "log"
    models = write_models(
        directory,
        {"name": "tiny", "source": TINY, "context": 512, "memory": "64MiB", "threads": 1, "dtype": "float32"},
    )
    options = ("--models", str(models), "--log-format", "json", "--log-level", "debug", "--api-key", KEY)
    headers = {"Authorization": f"Bearer {KEY}"}
    with server_process(*options, log=log) as served:
        for more in ({}, {"stream": True}, {"n": 2}, {"response_format": {"type": "json_schema", "json_schema": {
            "name": "a", "schema": SCHEMA, "strict": True}}}):  # fmt: skip
            body = {"messages": [{"role": "user", "content": "xyzzy"}], "max_tokens": 20, **more}
            answer = patient.post(f"{served.url}/v1/chat/completions", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
        text = patient.get(f"{served.url}/metrics", headers=headers).text
    metrics: dict[str, float] = {}
    names = set()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            names.add(sample.name)
            if "tiny" in sample.labels.values():
                metrics[sample.name] = metrics.get(sample.name, 0.0) + sample.value
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    yield Seen(names, metrics, lines)


def expressions(node: Any) -> Iterator[str]:
    """Every query of the dashboard, whatever it is for."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("expr", "query", "definition") and isinstance(value, str):
                yield value
            else:
                yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


def test_the_dashboard_asks_for_nothing_that_is_not_there(seen: Seen) -> None:
    asked = {name for expression in expressions(DASHBOARD) for name in NAME.findall(expression)}
    assert len(asked) > 30 and not asked - seen.names
    assert all(NAME.search(target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"])
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_a_real_engine_tells_how_long_requests_waited(seen: Seen) -> None:
    count = {name: seen.metrics[f"headrace_{name}_count"] for name in (
        "queue_seconds", "prefill_seconds", "decode_seconds", "time_to_first_token_seconds", "request_duration_seconds",
        "grammar_compile_seconds", "answer_length_tokens",
    )}  # fmt: skip
    assert count.pop("grammar_compile_seconds") == 1 and count.pop("answer_length_tokens") == 5
    assert set(count.values()) == {4}
    total = {name: seen.metrics[f"headrace_{name}_sum"] for name in count}
    assert 0 < total["queue_seconds"] + total["prefill_seconds"] <= total["time_to_first_token_seconds"]
    assert 0 < seen.metrics["headrace_grammar_compile_seconds_sum"] <= total["queue_seconds"]
    parts = total["time_to_first_token_seconds"] + total["decode_seconds"]
    assert 0 < parts <= total["request_duration_seconds"]


def test_all_that_the_server_prints_is_json(seen: Seen) -> None:
    answers = [entry for entry in seen.lines if entry.get("path") == "/v1/chat/completions"]
    assert len(answers) == 4 and all(entry["model"] == "tiny" and entry["status"] == 200 for entry in answers)
    assert all(entry["queue_seconds"] >= 0 and entry["finish_reason"] for entry in answers)
    loggers = {entry["logger"] for entry in seen.lines}
    assert any(name.startswith("uvicorn") for name in loggers), "uvicorn's own lines are among them"
    assert any("is ready at" in entry["message"] for entry in seen.lines), "and so is the banner"
    assert not any(secret in json.dumps(entry) for entry in seen.lines for secret in ("xyzzy", KEY))
