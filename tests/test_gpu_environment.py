"""`make gpu` where Python has torch, transformers and little else: what the engine needs there, and no more."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import psutil
import pytest

from bench.gpu.job import Job, Options
from scripts import gpu_suite
from scripts.gpu_python import NEEDED, PARTS, main, missing
from tests.clocks import PATIENCE, wait_until
from tests.places import ROOT

SPARED = ("zmq", "llguidance", "outlines_core", "gguf", "fastapi", "uvicorn", "pydantic", "starlette", "openai",
          "hypothesis", "jsonschema", "schemathesis")  # fmt: skip
WITHOUT = """
import importlib, sys

class Without:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in spared else self.finder.find_spec(name, path, target)

spared = sys.argv[1].split(",")
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
RUN = """
from engine.build import build_engine
from engine.config import EngineConfig
from engine.messages import AddRequest
from engine.sampling_params import SamplingParams
import bench.gpu.__main__, tests.engine.kernels.kernel_cases, tests.conftest
import tests.gpu.test_engine, tests.gpu.test_fp8, tests.gpu.test_ranks, tests.gpu.test_sight
tiny = "random://llama?hidden_size=64&intermediate_size=64&num_hidden_layers=2&vocab_size=300&num_attention_heads=4"
engine, _ = build_engine(EngineConfig(name="tiny", source=tiny, device="cpu", context=64), lambda *_: None)
engine.add(AddRequest(1, [1, 2, 3], SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)))
tokens = []
while engine.has_work:
    tokens += [token for output in engine.step() for token in output.token_ids]
engine.close()
print("tokens", len(tokens))
"""


@pytest.mark.timeout(300)
def test_the_engine_runs_with_what_the_page_lists(tmp_path: Path) -> None:
    # The cases of kernels ask for a GPU when they are imported, unless they are interpreted.
    there = {"HEADRACE_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1"}
    environment = os.environ | there
    command = [sys.executable, "-c", WITHOUT + RUN, ",".join(SPARED)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.stdout.splitlines()[-1:] == ["tokens 4"], done.stderr[-3000:]
    assert "llguidance is not installed" in done.stderr


def test_the_lists_of_packages_agree() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for name in NEEDED:
        assert f"`{name}`" in page and name not in SPARED
    assert not missing(NEEDED) and missing(["no_such_module", "json"]) == ["no_such_module"]
    assert set(PARTS) & set(SPARED)


def test_a_python_without_what_is_needed_is_named_in_one_line(capsys) -> None:  # type: ignore[no-untyped-def]
    assert main(["--check"], needed=["json", "no_such_module"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "no_such_module" in said[0] and sys.executable in said[0]


def test_every_part_of_the_suite_is_there() -> None:
    for part in gpu_suite.PARTS:
        for _, module, *arguments in gpu_suite.commands(part):
            assert module == "pytest" or importlib.util.find_spec(module), module
            for argument in arguments:
                path, _, test = argument.partition("::")
                if path.startswith("tests/"):
                    assert f"def {test}(" in (ROOT / path).read_text() if test else (ROOT / path).is_file(), argument


def alive(pid: int) -> bool:
    """Whether it still does something."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_a_part_that_hangs_is_ended_and_the_others_have_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    child = "import os, sys, time; os.fork(); open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); time.sleep(100)"
    pids = tmp_path / "pids"
    commands = {
        "bench": [["-c", child, str(pids)]],
        "kernels": [["-c", "raise SystemExit(3)"], ["-c", ""]],
        "engine": [["-c", ""], ["-c", ""]],
    }

    class Program(subprocess.Popen[bytes]):
        """The time of the one that hangs begins when it does."""

        def wait(self, timeout: float | None = None) -> int:
            if child in cast(list[str], self.args):
                wait_until(lambda: pids.exists() and len(pids.read_text().splitlines()) == 2)
            return super().wait(timeout)

    monkeypatch.setattr(gpu_suite, "commands", lambda part: commands[part])
    seconds = {"bench": 1.0}
    monkeypatch.setattr(gpu_suite, "with_seconds", lambda part, given: ([*given], seconds.get(part, PATIENCE)))
    monkeypatch.setattr(gpu_suite, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": Program}))
    assert gpu_suite.main([*commands, "--"]) == 1
    said = capfd.readouterr().out.splitlines()
    assert [line.split(" ", 1)[0] for line in said[-3:]] == [*commands]
    assert "ended after 1 s" in said[-3] and "failed (3)" in said[-2] and "well" in said[-1]
    wait_until(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))
    failing = [["-c", "raise SystemExit(3)"], ["-c", f"open({str(tmp_path / 'second')!r}, 'w')"]]
    monkeypatch.setattr(gpu_suite, "commands", lambda _: failing)
    assert "failed (3)" in gpu_suite.play("engine", []) and (tmp_path / "second").exists(), "what follows is run too"
    assert gpu_suite.main(["soap"]) == 2 and "soap" in capfd.readouterr().err


def test_the_benchmark_ends_with_its_table_before_it_is_ended() -> None:
    def told(*arguments: str) -> tuple[float, float]:
        given, seconds = gpu_suite.with_seconds("bench", arguments)
        return float(given[given.index("--seconds") + 1]), seconds

    assert told() == (440, 480) and told("--gpus", "2") == (1460, 1500) and told("--seconds", "60") == (60, 100)
    assert gpu_suite.with_seconds("soak", ["--rate", "2"]) == (["--rate", "2"], 480)


def test_a_job_of_the_benchmark_ends_with_it(tmp_path: Path) -> None:
    """It is in a session of its own, so that it can be ended with its ranks."""
    job = "import time; from bench.gpu import job; job.run_job = lambda *_: time.sleep(100); job.main()"
    starter = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', *sys.argv[1:]], start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    results, described = tmp_path / "results", Job("device", "", (), Options()).encode()
    program = subprocess.Popen(
        [sys.executable, "-c", starter, job, described, str(results)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True,
    )  # fmt: skip
    assert program.stdin is not None and program.stdout is not None
    pid = int(program.stdout.readline())
    wait_until(results.exists)
    assert alive(pid)
    program.kill()
    program.wait()
    program.stdin.close()
    program.stdout.close()
    wait_until(lambda: not alive(pid))


@pytest.mark.slow
def test_what_a_server_did_under_load_is_kept_when_it_fails_later(tmp_path: Path) -> None:
    tiny = "llama?hidden_size=64&intermediate_size=64&num_hidden_layers=2&vocab_size=300&num_attention_heads=4"
    figures = tmp_path / "figures.json"
    options = ["--device", "cpu", "--clients", "1", "--duration", "1", "--prompt-tokens", "20", "--max-tokens", "8"]
    # No context is as long as that prompt.
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu.traffic", "--model", f"{tiny}&max_position_embeddings=512", *options,
         "--long-prompt", "4000", "--json", str(figures)],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "failed:" in done.stderr
    assert set(json.loads(figures.read_text())) == {"model", "start", "clients"}
