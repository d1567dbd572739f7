"""What names the numbers of an engine changes when they can change, and not otherwise."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import build
from engine.build import build_engine
from engine.config import EngineConfig


def numerics(directory: Path, **options: Any) -> str:
    settings = {"dtype": "float32", "device": "cpu", "threads": 1, "num_blocks": 64, **options}
    return build_engine(EngineConfig(name="t", source=str(directory), **settings), lambda *_: None)[1].numerics


def test_numerics_change_with_what_can_change_the_numbers(
    tiny_model_dir: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tiny_model_dir("llama")
    usual = numerics(directory)
    same = [{}, {"overlap": True}, {"graphs": True}, {"prefix_cache": False}, {"context": 128}, {"max_num_seqs": 3}]
    assert {numerics(directory, **options) for options in same} == {usual}
    others = [{"dtype": "float16"}, {"attention": "reference"}, {"fusion": False}, {"block_size": 32}]
    found = [numerics(directory, **options) for options in others]
    found.append(numerics(tiny_model_dir("qwen2")))
    # A context that the frequencies depend on.
    scaled = shutil.copytree(directory, tmp_path / "scaled")
    config = json.loads((scaled / "config.json").read_text())
    rope = config.get("rope_parameters") or {"rope_theta": 10000.0}
    config["rope_parameters"] = rope | {"rope_type": "dynamic", "factor": 4.0}
    (scaled / "config.json").write_text(json.dumps(config))
    found += [numerics(scaled, context=context) for context in (128, 256)]
    monkeypatch.setattr(build, "version", lambda: "another")
    found.append(numerics(directory))
    assert len({usual, *found}) == len(found) + 1
