"""The examples of docs/offline.md, run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.places import ROOT

BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "docs" / "offline.md").read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.slow
@pytest.mark.parametrize("example", [body for language, body in BLOCKS if language == "python"])
def test_examples_in_python(example: str) -> None:
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    if "City" in example:
        assert re.fullmatch(r"(France|Italy) [12]\d{3}", done.stdout.strip())


@pytest.mark.slow
def test_the_example_of_a_file(tmp_path: Path) -> None:
    (request,) = [body for language, body in BLOCKS if language == "json"]
    (command,) = [body for language, body in BLOCKS if language == "sh" and "batch" in body]
    (tmp_path / "questions.jsonl").write_text(request)
    words = command.split()
    assert words[0] == "headrace"
    program = [sys.executable, "-m", "server.commands.cli", *words[1:], "--models", str(ROOT / "models.yaml")]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '"custom_id": "1"' in (tmp_path / "answers.jsonl").read_text()
