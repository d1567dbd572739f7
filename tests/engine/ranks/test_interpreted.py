"""CUDA's layers, with what ranks say to each other inside, on two ranks without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.test_oracle import generate
from tests.places import ROOT
from tests.tiny_models import build_tiny_model


def test_layers_of_launches_sum_up_what_ranks_have(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="needs triton, which comes with torch for CUDA and with make test on Linux")
    from tests.engine.ranks.interpreted import TOKENS, prompts

    directory = build_tiny_model("llama", tmp_path / "model", two_layers=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.ranks.interpreted", str(directory)], cwd=ROOT, capture_output=True,
        text=True, timeout=280, check=False, env=os.environ | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["outputs"] == [generate(directory, prompt, TOKENS) for prompt in prompts().values()]
    assert (found["layers"], found["launches"]) == (2, 12), "ten launches of a layer, and two sums"
    assert found["sums"] == [True] * 4 and found["ours"] == [True] * 9
