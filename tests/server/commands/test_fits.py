"""`headrace models --gpu`: what an operator reads of a GPU that is not here."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from server.commands.cli import main
from server.commands.fits import forms_on, known_shape, print_fits
from server.config.settings import ModelsFile, ModelSpec
from server.fleet.gpus import GPUS

LLAMA = ModelSpec(name="meta-llama/Llama-3.1-8B-Instruct", source="meta-llama/Llama-3.1-8B-Instruct")


def test_the_command_tells_each_form(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    models = [{"name": "microsoft/phi-4", "context": 8192}, {"name": "org/other"}]
    path.write_text(json.dumps({"default": "microsoft/phi-4", "models": models}))
    assert main(["models", "--models", str(path), "--gpu", "h100"]) == 0
    said = capsys.readouterr().out
    assert [line.split("  ")[1].strip() for line in said.splitlines()[1:4]] == ["16 bits", "fp8", "fp8, kv fp8"]
    assert said.count(" 8,192 ") == 3 and "not known" in said and "H100 80GB" in said


def test_only_gpus_that_are_listed_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["models", "--gpu", "abacus"])
    assert "'l40s'" in capsys.readouterr().err


def test_a_form_that_a_gpu_does_not_compute_in_is_not_offered() -> None:
    shape = known_shape(LLAMA)
    assert shape is not None
    titles = {name: [form.title for form, _ in forms_on(shape, LLAMA, gpu)] for name, gpu in GPUS.items()}
    assert titles["a100-80"] == titles["3090"] == ["16 bits"]
    assert titles["l4"] == titles["h200"] == ["16 bits", "fp8", "fp8, kv fp8"]
    experts = known_shape(ModelSpec(name="deepseek-ai/DeepSeek-R1", source="deepseek-ai/DeepSeek-R1"))
    assert experts is not None
    ((form, found),) = forms_on(experts, LLAMA, GPUS["b200"])
    assert form.title == "16 bits" and not found.kv_tokens


def test_weights_too_large_to_be_read_in_16_bits_need_files_in_fp8() -> None:
    spec = ModelSpec(name="microsoft/phi-4", source="microsoft/phi-4")
    shape = known_shape(spec)
    assert shape is not None
    plain, eight, _ = forms_on(shape, spec, GPUS["4090"])
    assert plain[1].kv_tokens == 0 and eight[0].title == "fp8 files" and eight[1].kv_tokens > 0


def test_what_is_here_goes_before_what_is_shipped(tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 512,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    spec = replace(LLAMA, source=str(tmp_path))
    shape = known_shape(spec)
    assert shape is not None and shape.hidden_size == 64
    shipped = known_shape(spec, look=False)
    assert shipped is not None and shipped.hidden_size == 4096
    (tmp_path / "config.json").write_text("[")
    assert known_shape(spec) is None


def test_every_listed_model_is_a_line_at_least() -> None:
    out = io.StringIO()
    print_fits(ModelsFile(default=LLAMA.name, models=(LLAMA,)), GPUS["b200"], out)
    assert out.getvalue().count(LLAMA.name) == 3
