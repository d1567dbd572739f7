"""Commands that load a model by themselves keep their books, on the scripted engine."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.costs import Ceilings
from engine.measuring import step
from server.benchmarks import engine_run, latency, schedule, startup, throughput
from server.commands import cli
from tests.server.fakes import FAKE_COMMAND

SIZES = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "tie_word_embeddings": True}


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What commands write to; every engine is the scripted one, on a device that copies 1 GB a second."""
    (tmp_path / "config.json").write_text(json.dumps(SIZES))
    script = {
        "model_dir": str(tmp_path),
        "token_ids": [5, 6],
        "step_seconds": 0.01,
        "weights_bytes": 10**6,
        "kv_bytes": 4096,
    }
    monkeypatch.setenv("FAKE_ENGINE", json.dumps(script))
    monkeypatch.setattr(engine_run, "ENGINE_COMMAND", FAKE_COMMAND)
    for module in (throughput, latency):
        monkeypatch.setattr(module, "ceilings", lambda info, threads: Ceilings(1e9, 1e15))
    return tmp_path / "found.json"


def run(scripted: Path, *words: str) -> dict[str, Any]:
    assert cli.main(["bench", *words, "--json", str(scripted)]) == 0
    found: dict[str, Any] = json.loads(scripted.read_text())
    return found


def test_throughput_counts_every_token_and_knows_its_ceiling(scripted: Path) -> None:
    words = ["throughput", "random://llama", "--requests", "3", "--prompt-tokens", "8:16", "--max-tokens", "4"]
    found = run(scripted, *words, "--repeats", "2")
    assert len(found["rounds"]) == 2
    for one in found["rounds"]:
        assert one["output_tokens"] == 12 and 24 <= one["prompt_tokens"] <= 48
        assert one["output_tokens_per_s"] == pytest.approx(12 / one["seconds"])
        # Four steps that read 1 MB each take 4 ms of a device that copies 1 GB a second.
        assert one["share_of_ceiling"] == pytest.approx(0.004 / one["seconds"], rel=0.1)


def test_latency_tells_the_first_token_from_those_that_follow(scripted: Path) -> None:
    found = run(scripted, "latency", "random://llama", "--batches", "2", "--max-tokens", "6", "--repeats", "1")
    (level,) = found["levels"]
    assert (
        level["batch"] == 2 and level["token_ms"] >= 5 and level["all_ms"] >= level["ttft_ms"] + 4 * level["token_ms"]
    )
    assert 0 < level["share_of_ceiling"] < 1


def test_an_engine_that_fails_a_request_ends_the_measurement(
    scripted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_ENGINE", json.dumps({"token_ids": [5], "error_after": 1}))
    assert cli.main(["bench", "throughput", "random://llama", "--requests", "1", "--repeats", "1"]) == 1
    assert "the engine failed a request" in capsys.readouterr().err


def test_the_timeline_of_a_step_has_its_parts_one_after_another() -> None:
    spent = {name: {"p50": 2.0, "p99": 3.0} for name in ("schedule+build", *step.PARTS, "all")}
    outcome = schedule.outcome_of("x", [{"case": "decode", "running": 4, "microseconds": spent}])
    (timeline,) = outcome.charts
    assert isinstance(timeline, schedule.Timeline)
    assert [span[1:] for span in timeline.spans] == [(2.0 * at, 2.0 * at + 2) for at in range(len(step.PARTS))]


def test_a_server_that_does_not_start_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert startup.HELP
    assert cli.main(["bench", "startup", "--repeats", "1", "--", "no-such-directory/", "--only"]) == 1
    assert "does not listen" in capsys.readouterr().err
