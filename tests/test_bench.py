"""The benchmarks of developers keep their books; their numbers are worth nothing otherwise."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.gpu import __main__ as suite
from bench.gpu.idle import LISTED, idle_shares, longest_of
from bench.gpu.job import Job, Options, run_job
from bench.gpu.report import rows_of
from engine.costs import Ceilings, Costs
from server.benchmarks.record import circumstances, table
from tests.clocks import PATIENCE


def test_tables_are_markdown() -> None:
    assert table(["a", "long"], [["1", "2"]]).splitlines() == ["|  a | long |", "| -: | ---: |", "|  1 |    2 |"]


TINY = "llama?hidden_size=64&intermediate_size=64&num_hidden_layers=2&vocab_size=300&num_attention_heads=4"
SIZES = ["--device", "cpu", "--batches", "1", "3", "--prompts", "64", "--context", "32", "--answer", "8"]
SIZES += ["--burst", "4", "16", "8"]


def here(job: Job, seconds: float, logs: Path | None) -> suite.Found:
    """A job of the GPU suite in this process, which is faster than one of its own."""
    found: suite.Found = {}
    run_job(job, found.__setitem__)
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_measurement_of_gpus_keeps_its_books(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every part, on the CPU and with a tiny model, so that only its figures mean nothing."""
    monkeypatch.setattr(suite, "run", here)
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    report_file = tmp_path / "gpu.json"
    assert suite.main([*SIZES, "--models", TINY, f"{TINY}@fp8", "--peers", TINY, "--json", str(report_file)]) == 0
    report = json.loads(report_file.read_text())
    found = report["found"]
    engine, peer = found[TINY], found[f"{TINY} peer"]
    assert set(found[f"{TINY}@fp8"]) == set(engine) - {"burst"}
    assert found[f"{TINY}@fp8"]["load"]["step_bytes"] < engine["load"]["step_bytes"]
    assert set(engine) == {
        "load",
        "decode 1",
        "decode 3",
        "prompt 64",
        "idle 1",
        "idle 3",
        "idle prompt 64",
        "burst",
        "offline",
    }
    assert {"ceilings", "attention 32 heads on 8 of 128, batch 1"} <= set(found["device"]) and report["device"] == "cpu"
    for name in ("decode 1", "decode 3", "prompt 64", "offline"):
        assert engine[name]["share_of_ceiling"] > 0, name
    for name in ("idle 1", "idle 3", "idle prompt 64"):
        assert 0 <= engine[name]["waiting"] <= engine[name]["idle"] < 1 and engine[name]["operations"] > 100
    assert peer["burst"]["tokens_per_second"] > 0 and peer["burst"]["requests"] == engine["burst"]["requests"] == 4
    assert found[f"{TINY} server"]["start"]["first_answer_seconds"] > 0
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert lines[-1].startswith("|") and len(lines) > sum(len(parts) for parts in found.values())


@pytest.mark.slow
@pytest.mark.timeout(300)  # three processes with torch
def test_a_job_that_fails_or_hangs_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = Options(device="cpu")
    bad = Job("engine", "no-such-model", ("decode",), options)
    assert "there is no such architecture" in suite.run(bad, PATIENCE)["error"]["error"]
    assert suite.run(bad, 0.1) == {"error": {"error": "not done after 0 s"}}
    dead = Job("engine", "llama", ("decode",), Options(device="no-such-device"))
    assert suite.run(dead, PATIENCE)["error"]["error"].startswith("RuntimeError")
    assert "there is no such architecture" in suite.run(bad, PATIENCE, tmp_path / "logs")["error"]["error"]
    assert "there is no such architecture" in (tmp_path / "logs" / "no-such-model.log").read_text()
    found = suite.measure([bad, dead], 1.0)
    assert [parts["error"]["error"][:8] for parts in found.values()] == ["left out", "left out"]
    assert rows_of(found)[0] == ["no-such-model", "error", "left out: the 1 s of the suite are over", ""]


def test_figures_are_written_when_they_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is cut short, as a borrowed machine may cut it, leaves those of the jobs before."""
    report = tmp_path / "gpu.json"

    def cut(job: Job, seconds: float, logs: Path | None) -> suite.Found:
        if job.kind == "engine":
            assert set(json.loads(report.read_text())["found"]) == {"device"}
            raise KeyboardInterrupt
        return {"ceilings": {"bytes_per_second": 1.0, "flops": 1.0, "fp8_flops": None}}

    monkeypatch.setattr(suite, "run", cut)
    with pytest.raises(KeyboardInterrupt):
        suite.main(["--device", "cpu", "--models", "a", "--parts", "ceilings", "decode", "--json", str(report)])
    assert json.loads(report.read_text())["found"]["device"]["ceilings"]["flops"] == 1.0


def test_the_operations_that_take_most_are_told() -> None:
    named = [("a", (0.0, 4.0)), ("b", (4.0, 5.0)), ("a", (5.0, 9.0)), ("b", (9.0, 10.0)), ("c", (10.0, 30.0))]
    assert longest_of(named, 2) == {"c x0.5": 10.0, "a x1": 4.0, "b x1": 1.0}
    assert len(longest_of([(str(at), (0.0, 1.0)) for at in range(99)], 1)) == LISTED


def test_a_result_names_no_folder_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["x", "/home/somebody/model.gguf", "--json", "bench/results/a.json"])
    assert circumstances()["command"].endswith(" model.gguf --json bench/results/a.json")


def test_jobs_survive_their_command_line() -> None:
    job = Job("engine", "a", ("decode",), Options(batches=(1, 2)), Ceilings(1.0, 2.0, 3.0))
    assert Job.decode(job.encode()) == job
    jobs = suite.plan(suite.parse([]), Options())
    assert [job.kind for job in jobs[:4]] == ["device", "engine", "server", "peer"]
    assert {job.model for job in jobs} - {""} == set(suite.MODELS)
    few = suite.parse(["--parts", "decode", "--models", "a"])
    assert [job.kind for job in suite.plan(few, Options())] == ["engine"]


def test_waiting_is_told_from_gaps_within_a_recorded_step() -> None:
    found = idle_shares([(10.0, 20.0), (0.0, 8.0), (5.0, 9.0), (60.0, 100.0), (21.0, 30.0)])
    assert found.operations == 5 and found.longest_gap_us == 30.0
    assert found.idle == pytest.approx(0.32) and found.waiting == pytest.approx(0.30)
    with pytest.raises(ValueError):
        idle_shares([])


def test_limits_are_those_of_the_arithmetic_done_by_hand() -> None:
    """An 8B model on a device of 4.3 TB/s and 790 TFLOP/s: its roofline as published beside the design."""
    costs = Costs(15.01e9, 2 * 6.98e9, 2 * 0.525e9, 4 * 32 * 128 * 32, 131072.0)
    ceilings = Ceilings(4.3e12, 790e12, 1450e12)
    assert 1 / costs.decode_seconds(ceilings, 1, 0) == pytest.approx(287, rel=0.01)
    assert 2048 / Costs(1, costs.hidden_flops, 0, 0, 1).prompt_seconds(ceilings, 2048) == pytest.approx(56600, rel=0.01)
    assert costs.best_offline_rate(ceilings, 900_000) == pytest.approx(11_900, rel=0.02)
    fast = replace(costs, is_fp8=True)
    assert fast.prompt_seconds(ceilings, 2048) < costs.prompt_seconds(ceilings, 2048)
