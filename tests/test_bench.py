"""The benchmarks of developers keep their books; their numbers are worth nothing otherwise."""

import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import image_load, tower
from bench.gpu import __main__ as suite
from bench.gpu import engines, images
from bench.gpu.forms import config_of, is_stored, text_config
from bench.gpu.idle import LISTED, idle_shares, longest_of
from bench.gpu.job import Job, Options, run_job
from bench.gpu.limits import loaded_costs
from bench.gpu.rank_costs import link_of, rank_costs, room_on
from bench.gpu.report import measured, rows_of
from engine.build import build_engine
from engine.config import EngineConfig
from engine.costs import Ceilings, Costs
from engine.device.ranks import leave
from engine.execution.model_runner import ModelRunner
from engine.sizing.formulas import shape_of
from engine.sizing.speed import decode_limit
from engine.weights import random_model
from server.benchmarks.engine_run import EngineRun
from server.benchmarks.record import circumstances, table, write_json
from server.fleet.gpus import GPUS
from tests.clocks import PATIENCE
from tests.tiny_models import VOCAB_SIZE, build_tiny_model


def test_tables_are_markdown() -> None:
    assert table(["a", "long"], [["1", "2"]]).splitlines() == ["|  a | long |", "| -: | ---: |", "|  1 |    2 |"]


TINY = "llama?hidden_size=64&intermediate_size=64&num_hidden_layers=2&vocab_size=300&num_attention_heads=4"
SEEING = "Qwen2.5-VL-7B?text_config.hidden_size=64&text_config.intermediate_size=64&text_config.num_hidden_layers=2"
SEEING += "&text_config.num_attention_heads=4&text_config.num_key_value_heads=2&text_config.vocab_size=320"
SEEING += "&text_config.rope_parameters.mrope_section=[2,3,3]&text_config.bos_token_id=1&text_config.eos_token_id=2"
SEEING += "&image_token_id=310&video_token_id=311&vision_start_token_id=312&vision_end_token_id=313"
SEEING += "&vision_config.depth=2&vision_config.hidden_size=32&vision_config.intermediate_size=32"
SEEING += "&vision_config.num_heads=2&vision_config.out_hidden_size=64&vision_config.fullatt_block_indexes=[1]"
SIZES = ["--device", "cpu", "--batches", "1", "3", "--prompts", "64", "--context", "32", "--answer", "8"]
SIZES += ["--burst", "4", "16", "8"]


def here(job: Job, seconds: float, logs: Path | None, seen: object) -> suite.Found:
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
    monkeypatch.setattr(images, "SIDE", 112)
    monkeypatch.setattr(image_load, "QUIET_STEPS", 20)
    models = [TINY, f"{TINY}@fp8", SEEING]
    assert suite.main([*SIZES, "--models", *models, "--peers", TINY, "--json", str(report_file)]) == 0
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
    alone = {
        "attention 32 heads on 8 of 128, batch 1",
        "experts small, FP8, 4 tokens",
        "linear 64 to 96, FP8 by block, 4 tokens",
    }
    assert {"ceilings", *alone} <= set(found["device"]) and report["device"] == "cpu"
    for name in ("decode 1", "decode 3", "prompt 64", "offline"):
        assert engine[name]["share_of_ceiling"] > 0, name
    for name in ("idle 1", "idle 3", "idle prompt 64"):
        assert 0 <= engine[name]["waiting"] <= engine[name]["idle"] < 1 and engine[name]["operations"] > 100
    sees = found[SEEING]
    assert set(sees) - (set(engine) - {"burst"}) == {"image encode", "image first token", "image beside streams"}
    assert sees["image encode"]["share_of_ceiling"] > 0 and sees["image encode"]["tokens"] == 16
    assert all(
        sees["image first token"][name] > 0 for name in ("milliseconds", "seen_milliseconds", "turn_milliseconds")
    )
    assert sees["image beside streams"]["steps"] > 0 and sees["image beside streams"]["streams"] == 2
    assert peer["burst"]["tokens_per_second"] > 0 and peer["burst"]["requests"] == engine["burst"]["requests"] == 4
    assert found[f"{TINY} server"]["start"]["first_answer_seconds"] > 0
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert lines[-1].startswith("|") and len(lines) > sum(len(parts) for parts in found.values())


def test_sleep_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only GPUs have a use for it; what is not packed for a CPU can be put away there too."""

    def unfused(spec: str, device: torch.device, **options: Any) -> EngineConfig:
        return replace(config_of(spec, device, **options), fusion=False)

    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(engines, "config_of", unfused)
    bench = engines.EngineBench(TINY, torch.device("cpu"), None, context=64, max_num_seqs=2)
    found = bench.sleep(8)
    bench.close()
    assert all(found[f"{name}_seconds"] > 0 for name in ("sleep", "wake", "first_token"))
    assert found["host_bytes"] > 0 and "awake in" in measured("sleep", found)


SHARED = "Llama-3.1-8B?hidden_size=64&intermediate_size=64&num_hidden_layers=2&vocab_size=300&num_attention_heads=4"
SHARED += "&num_key_value_heads=2&head_dim=16"
LATENT = "DeepSeek-R1?hidden_size=64&intermediate_size=256&moe_intermediate_size=256&num_hidden_layers=4&vocab_size=300"
LATENT += "&num_attention_heads=4&n_routed_experts=8&num_experts_per_tok=2&q_lora_rank=32&kv_lora_rank=32&n_group=2"
LATENT += "&qk_rope_head_dim=16&qk_nope_head_dim=16&v_head_dim=16&topk_group=1&num_key_value_heads=4"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_measurement_of_models_that_gpus_share_keeps_its_books(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two ranks on the CPU; one model is in FP8 from the draw on, and one is not divided by two."""

    def alone(job: Job, seconds: float, logs: Path | None, seen: object) -> suite.Found:
        try:
            return here(job, seconds, logs, seen)
        finally:
            leave()

    monkeypatch.setattr(suite, "run", alone)
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "gpus.json"
    odd = SHARED.replace("intermediate_size=64", "intermediate_size=63")
    sizes = ["--device", "cpu", "--batches", "1", "3", "--prompts", "64", "--context", "32", "--json", str(file)]
    assert suite.main([*sizes, "--gpus", "2", "--models", SHARED, f"{LATENT}@fp8files", odd]) == 0
    report = json.loads(file.read_text())
    assert report["ranks"] == {"devices": ["cpu", "cpu"], "nccl": None, "topology": []}
    found = report["found"]
    assert "2 does not divide" in found[f"{odd} on 2 GPUs"]["load"]["left_out"]
    assert found["sums on 2 GPUs"]["sum 8 x 64"]["microseconds"] > 0
    assert found["sums on 2 GPUs"]["gather 1 x 320"]["bytes_per_second"] > 0
    for model in (SHARED, f"{LATENT}@fp8files"):
        for name in ("decode 1", "decode 3", "prompt 64"):
            assert found[f"{model} on 2 GPUs"][name]["share_of_ceiling"] > 0, (model, name)
            assert found[f"{model} on 1 GPU"][name]["tokens_per_second"] > 0, (model, name)
        two, one = (found[f"{model} on {gpus}"]["load"] for gpus in ("2 GPUs", "1 GPU"))
        assert two["step_bytes"] < one["step_bytes"] < 2 * two["step_bytes"] and two["ranks"] == 2
        assert two["parameters"] == one["parameters"]


def test_the_device_that_is_named_is_the_one_that_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cuda", "cuda:2", "cpu"):
        assert config_of("llama", torch.device(name), context=64, max_num_seqs=1).device == name
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for given in (["--device", "cuda:2"], ["--device", "cuda:1", "--gpus", "2"]):
        assert suite.main(given) == 2
    said = "--gpus {} from {} on were asked for, and torch sees 2 GPUs\n"
    assert capsys.readouterr().out == said.format(1, "cuda:2") + said.format(2, "cuda:1")


def test_what_is_measured_on_several_gpus() -> None:
    options = suite.parse(["--gpus", "2"])
    jobs = suite.plan(options, Options(batches=tuple(options.batches)))
    assert [job.kind for job in jobs[:2]] == ["device", "sums"] and {job.kind for job in jobs[2:]} == {"ranks"}
    assert [job.ranks for job in jobs] == [1, 2] + [2, 1] * len(suite.SHARED_MODELS)
    assert jobs[2].name == "Llama-3.3-70B on 2 GPUs" and jobs[3].name == "Llama-3.3-70B on 1 GPU"
    assert Job.decode(jobs[2].encode()) == jobs[2]
    with pytest.raises(SystemExit):
        suite.parse(["--parts", "ranks"])


@pytest.mark.parametrize(
    ("model", "gpus", "kind", "lacking"),
    [
        ("Llama-3.3-70B", 1, "h200", ""),
        ("Llama-3.3-70B", 1, "h100", "(weights 131) beside the KV cache, and a GPU has 80"),
        ("Llama-3.3-70B", 2, "h100", ""),
        ("Llama-3.3-70B@fp8files", 1, "h100", ""),
        ("DeepSeek-R1@fp8files", 2, "h200", "on each of 2 GPUs"),
        ("DeepSeek-R1@fp8files", 8, "h200", ""),
        ("DeepSeek-R1?num_hidden_layers=9@fp8files", 2, "h100", ""),
        ("DeepSeek-R1?num_hidden_layers=9@fp8files", 1, "h200", ""),
    ],
)
def test_what_a_gpu_lacks_for_a_part_of_a_model_is_said(
    model: str, gpus: int, kind: str, lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    monkeypatch.setattr(random_model, "write_tokenizer", lambda *_: None)  # of 129,000 tokens it takes seconds
    settings = config_of(model, torch.device("cuda"), context=4096, max_num_seqs=64, ranks=gpus)
    tokens, said = room_on(text_config(settings), settings, GPUS[kind].num_bytes, stored=is_stored(model))
    assert lacking in said and (tokens > 4096) == (not lacking) and bool(said) == bool(lacking)


def test_costs_of_a_rank_are_those_of_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`headrace models --gpu 2xh100` and the share of a ceiling rest on the same bytes."""
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    monkeypatch.setattr(random_model, "write_tokenizer", lambda *_: None)
    settings = config_of("Llama-3.3-70B@fp8files", torch.device("cuda"), context=4096, max_num_seqs=64, ranks=2)
    config, gpu = text_config(settings), GPUS["h100"]
    costs, shape = rank_costs(config, settings, gpu.link, stored=True), shape_of(config, 2)
    assert costs is not None and shape is not None
    limit = decode_limit(shape, settings, gpu.ceilings, gpu.link, batch=8, context=512, fp8_files=True)
    assert 8 / costs.decode_seconds(gpu.ceilings, 8, 512) == pytest.approx(limit)
    assert costs.attention_flops == 4 * 32 * 128 * 80
    sums = 2 * (2 * 80 + 1) * 8192 / gpu.link  # of two ranks each sends as many bytes as are summed up
    plain = Costs.prompt_seconds(costs, gpu.ceilings, 2048)
    assert costs.prompt_seconds(gpu.ceilings, 2048) - plain == pytest.approx(2048 * sums)
    assert rank_costs(config, settings, None, stored=True) is None, "over a link that is not known"


def test_links_are_known_by_the_names_that_drivers_tell() -> None:
    names = {
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H200": "h200",
        "NVIDIA A100-SXM4-80GB": "a100-80",
        "NVIDIA GeForce RTX 4090": "4090",
        "NVIDIA L40S": "l40s",
    }
    assert {name: link_of(name) for name in names} == {name: GPUS[kind].link for name, kind in names.items()}
    assert link_of("NVIDIA H100 PCIe") is None and link_of("something else") is None


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

    def cut(job: Job, seconds: float, logs: Path | None, seen: object) -> suite.Found:
        if job.kind == "engine":
            assert set(json.loads(report.read_text())["found"]) == {"device"}
            raise KeyboardInterrupt
        return {"ceilings": {"bytes_per_second": 1.0, "flops": 1.0, "fp8_flops": None}}

    monkeypatch.setattr(suite, "run", cut)
    with pytest.raises(KeyboardInterrupt):
        suite.main(["--device", "cpu", "--models", "a", "--parts", "ceilings", "decode", "--json", str(report)])
    assert json.loads(report.read_text())["found"]["device"]["ceilings"]["flops"] == 1.0


def test_figures_of_a_job_under_way_are_written_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that would never end, in the middle of a line."""
    report, script = tmp_path / "gpu.json", tmp_path / "job"
    script.write_text(
        "import sys, time, pathlib\n"
        'text = \'["decode 1", {"tokens_per_second": 7.0}]\\n["decode 8", {"tokens_\'\n'
        "pathlib.Path(sys.argv[-1]).write_text(text)\n"
        "while True: time.sleep(1)\n"
    )
    start, started = subprocess.Popen, []

    def popen(command: list[str], **options: Any) -> Any:
        started.append(start([command[0], str(script), command[-1]], **options))
        return started[-1]

    def cut(path: str, content: dict[str, Any]) -> None:
        if content["found"]["a"]:
            write_json(path, content)
            raise KeyboardInterrupt

    monkeypatch.setattr(suite, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": popen}))
    monkeypatch.setattr(suite, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(suite, "write_json", cut)
    with pytest.raises(KeyboardInterrupt):
        suite.main(["--device", "cpu", "--models", "a", "--parts", "decode", "--json", str(report)])
    assert json.loads(report.read_text())["found"] == {"a": {"decode 1": {"tokens_per_second": 7.0}}}
    assert started[0].poll() is not None, "it is ended"


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
    assert suite.main(["--device", "cpu", "--parts", "images", "--models", "llama", "no-such-model"]) == 2
    few = suite.parse(["--parts", "decode", "--models", "a"])
    assert [job.kind for job in suite.plan(few, Options())] == ["engine"]


def test_waiting_is_told_from_gaps_within_a_recorded_step() -> None:
    found = idle_shares([(10.0, 20.0), (0.0, 8.0), (5.0, 9.0), (60.0, 100.0), (21.0, 30.0)])
    assert found.operations == 5 and found.longest_gap_us == 30.0
    assert found.idle == pytest.approx(0.32) and found.waiting == pytest.approx(0.30)
    with pytest.raises(ValueError):
        idle_shares([])


def test_a_tower_s_operations_are_counted_by_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four windows of one size: an attention in each of 32 layers. And the parts of a layer are timed."""
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    found = tower.operations(224, 1)
    assert found["patches"] == 256 and found["attentions"] == 32 < found["operations"]
    timed = tower.parts(64, 1)
    assert {"convolution bfloat16", "product float32", "attention 64"} <= timed.keys() and min(timed.values()) > 0


IDLE = {
    "qwen2_5_vl": ("visual.",),
    "mllama": ("vision_model.", "multi_modal_projector.", "model.layers.1.", "model.layers.3."),
}
"""What only images need of the tiny models: towers, and of Mllama two layers of cross attention."""


@pytest.mark.parametrize("family", IDLE)
def test_a_step_of_text_moves_nothing_of_images(family: str, tmp_path: Path) -> None:
    engine, info = build_engine(
        EngineConfig(
            name="a", source=str(build_tiny_model(family, tmp_path)), dtype="float32", device="cpu", fusion=False
        ),
        lambda *_: None,
    )
    runner = engine._runner
    assert isinstance(runner, ModelRunner)
    named = [(name, part.numel()) for name, part in runner.model.named_parameters()]
    idle = sum(size for name, size in named if any(word in name for word in IDLE[family]))
    costs = loaded_costs(runner.model, runner.loaded.text_config, info, is_fp8=False)
    assert 0 < idle < info.num_parameters
    assert costs.hidden_flops == 2 * (info.num_parameters - idle - 2 * VOCAB_SIZE * 64)
    assert costs.step_bytes == 4 * (info.num_parameters - idle - VOCAB_SIZE * 64)
    process: Any = None
    # `headrace bench` counts by the configuration alone, and leaves norms of layers of cross attention in.
    assert asdict(EngineRun(process, info).costs()) == pytest.approx(asdict(costs), rel=0.01)
    engine.close()


def test_limits_are_those_of_the_arithmetic_done_by_hand() -> None:
    """An 8B model on a device of 4.3 TB/s and 790 TFLOP/s: its roofline as published beside the design."""
    costs = Costs(15.01e9, 2 * 6.98e9, 2 * 0.525e9, 4 * 32 * 128 * 32, 131072.0)
    ceilings = Ceilings(4.3e12, 790e12, 1450e12)
    assert 1 / costs.decode_seconds(ceilings, 1, 0) == pytest.approx(287, rel=0.01)
    assert 2048 / Costs(1, costs.hidden_flops, 0, 0, 1).prompt_seconds(ceilings, 2048) == pytest.approx(56600, rel=0.01)
    assert costs.best_offline_rate(ceilings, 900_000) == pytest.approx(11_900, rel=0.02)
    mixture = replace(costs, routed_bytes=12e9, routed_share=1 / 32)  # a step of 32 tokens can reach every expert
    read = [4.3e12 * mixture.decode_seconds(ceilings, batch, 0) for batch in (1, 8, 32, 64)]
    assert read == pytest.approx([3.01e9 + 12e9 * share for share in (1 / 32, 1 / 4, 1, 1)])
    fast = replace(costs, is_fp8=True)
    assert fast.prompt_seconds(ceilings, 2048) < costs.prompt_seconds(ceilings, 2048)
