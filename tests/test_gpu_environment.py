"""`make gpu` where Python has torch, transformers and little else: what the engine needs there, and no more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.gpu_python import NEEDED, PARTS, main, missing
from tests.places import ROOT

SPARED = ("zmq", "llguidance", "outlines_core", "gguf", "fastapi", "uvicorn", "pydantic", "starlette", "openai",
          "httpx", "hypothesis", "jsonschema", "schemathesis")  # fmt: skip
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
import bench.gpu.__main__, tests.engine.kernels.kernel_cases, tests.gpu.checks
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
