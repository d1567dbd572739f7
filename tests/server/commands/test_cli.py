"""The command as an operator meets it: messages, exit codes, signals."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest

from engine import version
from engine.config import EngineConfig
from server.commands.cli import build_parser
from server.commands.serve_command import configured
from server.config.settings import ModelSpec
from tests.clocks import PATIENCE
from tests.places import ROOT
from tests.server import patient
from tests.server.fake_engine import SCRIPT_VARIABLE, Script
from tests.server.fakes import NEVER, wait_ready, wait_until


def headrace(*arguments: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "server.commands.cli", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@contextmanager
def serving(tmp_path: Path, script: Script, **settings: object) -> Iterator["tuple[subprocess.Popen[str], str]"]:
    environment = {
        **os.environ,
        SCRIPT_VARIABLE: msgspec.json.encode(script).decode(),
        "SERVE_FAKE": json.dumps(settings),
    }
    port_file = tmp_path / "port"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.server.serve_fake", str(port_file)],
        cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_until(port_file.exists)
        url = f"http://127.0.0.1:{port_file.read_text()}"
        yield process, url
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def wait_listening(url: str) -> None:
    def answers() -> bool:
        try:
            return patient.get(f"{url}/health").status_code > 0
        except httpx.TransportError:
            return False

    wait_until(answers)


def lives(process: psutil.Process) -> bool:
    """Whether it still does something."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# ---- what is wrong before anything runs


def test_help_and_version_and_usage() -> None:
    assert "serve" in headrace("--help").stdout
    assert "--context" in headrace("serve", "--help").stdout
    assert re.fullmatch(
        rf"headrace {re.escape(version())}( \([0-9a-f]{{12,}}(-dirty)?\))?\n", headrace("--version").stdout
    )
    for wrong in ((), ("fly",), ("serve", "--port", "x"), ("serve", "--port", "99999"), ("serve", "--context", "-1")):
        result = headrace(*wrong)
        assert result.returncode == 2 and "usage:" in result.stderr and "Traceback" not in result.stderr


def complaint_of(*arguments: str, cwd: Path = ROOT) -> str:
    result = headrace(*arguments, cwd=cwd)
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert result.stdout == ""
    return result.stderr


def test_an_unknown_model_gets_a_suggestion() -> None:
    assert "did you mean" in complaint_of("serve", "smolm2")


def test_a_broken_models_file_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("default: a\nmodels:\n  - name: a\n    devise: cpu\n")
    assert "models.yaml:4" in complaint_of("serve", cwd=tmp_path)
    assert "models.yaml:4" in complaint_of("models", cwd=tmp_path)
    assert "nowhere.yaml" in complaint_of("serve", "--models", "nowhere.yaml", cwd=tmp_path)


def test_a_port_in_use_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("default: a\nmodels:\n  - name: a\n    source: ./no-such-directory\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = complaint_of("serve", "--port", str(port), cwd=tmp_path)
        assert f"port {port}" in message and "--port" in message and "starting" not in message
        assert "no-such-directory" not in message


def test_a_host_that_is_not_ours_and_a_bad_key() -> None:
    assert "192.0.2.1" in complaint_of("serve", "--host", "192.0.2.1")
    assert "printable ASCII" in complaint_of("serve", "--api-key", "pässword", "--port", "0")


def test_a_missing_source_ends_the_server_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("default: a\nmodels:\n  - name: a\n    source: ./no-such-directory\n")
    message = complaint_of("serve", "--port", "0", cwd=tmp_path)
    assert "no-such-directory" in message


# ---- running


def test_what_the_api_process_never_imports() -> None:
    code = (
        "import sys, server.commands.cli, server.app, server.prompt.tokenizer\n"
        "print([name for name in ('torch', 'transformers', 'accelerate') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert result.stdout.strip() == "[]", result.stderr


def test_the_banner_says_where_and_what(tmp_path: Path, smollm2_dir: Path) -> None:
    script = Script(model_dir=str(smollm2_dir), token_ids=[504])
    with serving(tmp_path, script, drain_seconds=0.0) as (process, url):
        wait_ready(url)
        process.terminate()
        _, stderr = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    assert f"is ready at {url}/v1" in stderr and f"curl {url}/v1/chat/completions" in stderr
    assert "fake: reading weights" in stderr and stderr.count("reading weights") == 1
    assert "\r" not in stderr and "Traceback" not in stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["loading", "idle", "busy"])
def test_a_signal_ends_everything(tmp_path: Path, smollm2_dir: Path, number: signal.Signals, moment: str) -> None:
    """Though the load, or the answer, would go on for ever."""
    script = Script(
        model_dir=str(smollm2_dir), token_ids=[504], step_seconds=0.01, context=10**7, holds_load=moment == "loading"
    )
    with serving(tmp_path, script, drain_seconds=0.3) as (process, url):
        wait_listening(url)
        wait_until(psutil.Process(process.pid).children)
        children = psutil.Process(process.pid).children(recursive=True)
        if moment != "loading":
            wait_ready(url)
        if moment == "busy":
            body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
            with patient.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
                lines = answer.iter_lines()
                next(lines)
                process.send_signal(number)
                rest = list(lines)
            assert "data: [DONE]" in rest and any('"error"' in line for line in rest)
        else:
            process.send_signal(number)
        _, stderr = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0 and "Traceback" not in stderr, stderr
        assert not [child for child in children if lives(child)]


def test_the_second_signal_ends_it_at_once(tmp_path: Path, smollm2_dir: Path) -> None:
    script = Script(model_dir=str(smollm2_dir), token_ids=[504], step_seconds=0.01, context=10**7)
    with serving(tmp_path, script, drain_seconds=NEVER) as (process, url):
        wait_ready(url)
        children = psutil.Process(process.pid).children(recursive=True)
        body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
        with patient.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
            next(answer.iter_lines())
            process.send_signal(signal.SIGINT)
            wait_until(lambda: patient.get(f"{url}/health").json()["status"] == "draining")
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 1
        wait_until(lambda: not any(map(lives, children)))


def test_a_failed_load_of_the_only_model_ends_the_server(tmp_path: Path) -> None:
    with serving(tmp_path, Script(load_fails="the weights are missing")) as (process, _):
        _, stderr = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
    assert "headrace: fake: the weights are missing\n  try something else" in stderr and "Traceback" not in stderr


def test_a_served_name_is_of_one_model() -> None:
    done = headrace("serve", "smollm2", "google/gemma-2-2b-it", "--served-name", "gpt-4o")
    assert done.returncode == 1 and "--served-name names one model, and 2 are to be served" in done.stderr


def test_what_the_command_line_says_of_a_model_comes_before_models_yaml() -> None:
    given = ["--dtype", "float32", "--kv-dtype", "fp8", "--activations", "int8", "--context", "99", "--threads", "1"]
    given += ["--graphs", "auto"]
    options = build_parser().parse_args(["serve", *given])
    spec = ModelSpec(name="a", source="b", dtype="bfloat16", activations="int16", memory="1GiB", graphs="lazy")
    expected = EngineConfig(
        name="a", source="b", dtype="float32", kv_dtype="fp8", activations="int8", context=99, threads=1, memory="1GiB"
    )
    assert configured(spec, options) == expected
