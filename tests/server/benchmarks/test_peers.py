"""How peers are found and compared."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ConfigError
from server.benchmarks.peer_servers import PEERS, Setting, program
from server.benchmarks.peers import add_arguments, outcome_of, run


def put_program(path: Path, text: str = "#!/bin/sh\necho vllm 1.0\n") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_a_program_is_that_of_the_peers_environment_or_else_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path = put_program(tmp_path / "usr" / "vllm")
    monkeypatch.setenv("PATH", str(tmp_path / "usr"))
    home = tmp_path / "peers"
    assert program(home, "vllm", "vllm") == on_path
    assert PEERS["vllm"].version(home) == "unknown"
    own = put_program(home / "vllm" / "bin" / "vllm")
    put_program(home / "vllm" / "bin" / "python")
    assert program(home, "vllm", "vllm") == own and PEERS["vllm"].version(home) == "vllm 1.0"
    with pytest.raises(ConfigError, match="no llama-server in llama_cpp"):
        program(home, "llama_cpp", "llama-server")


def test_all_serve_the_same_directory_with_the_same_context_and_places(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_text("")
    setting = Setting(home=tmp_path, gguf=tmp_path / "x.gguf", source=str(source), device="cuda", dtype="float32",
                      context=512, slots=3)  # fmt: skip
    for name, words in (("vllm", ("--max-model-len 512", "--max-num-seqs 3")),
                        ("transformers", ("--device cuda",)),
                        ("sglang", ("--context-length 512", "--max-running-requests 3"))):  # fmt: skip
        for needed in ("vllm", "transformers", "python"):
            put_program(tmp_path / name / "bin" / needed)
        command = " ".join(PEERS[name].command(setting, 8123))
        assert str(source) in command and "--port 8123" in command and "--dtype float32" in command
        assert all(word in command for word in words), command


@pytest.mark.parametrize("name", ["headrace_bf16", "llama_cpp_bf16"])
def test_those_that_compute_in_one_format_refuse_another(name: str, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.set_defaults(label="")
    options = parser.parse_args(["--only", name, "--dtype", "float32", "--home", str(tmp_path)])
    with pytest.raises(ConfigError, match=f"{name} computes in bfloat16, got --dtype float32"):
        run(options)


def test_rates_stand_beside_the_first_servers_and_failures_below() -> None:
    def one_run(peer: str, rate: float) -> dict[str, Any]:
        spread = {"p50": 10.0, "p95": 11.0, "p99": 12.0}
        level = {"concurrency": 4, "output_tokens_per_s": rate, "ttft_ms": spread, "itl_ms": spread, "errors": 0,
                 "itl_curve_ms": [1.0] * 100}  # fmt: skip
        return {"peer": peer, "levels": [level], "start_s": 2.0, "memory_mib": 100}

    failed = {"peer": "vllm", "failed": "it ended with status 1", "said": "no module"}
    options = argparse.Namespace(only=["headrace", "llama_cpp", "vllm"], concurrency=[4], label="x")
    measured = (("headrace", 100.0), ("llama_cpp", 40.0), ("headrace", 200.0), ("headrace", 120.0))
    runs = [one_run(peer, rate) for peer, rate in measured]
    outcome = outcome_of(options, {"runs": [*runs, failed], "peer_versions": {"llama_cpp": "build 1"}})
    medians, ratios = outcome.tables
    assert [row[1] for row in medians.rows] == ["120", "40", "failed"]
    assert [row[1] for row in ratios.rows] == ["1.00", "0.33", "-"]
    assert outcome.has_failed and outcome.notes == (
        "vllm did not start: it ended with status 1: no module", "llama_cpp: build 1",
    )  # fmt: skip
