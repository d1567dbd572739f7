"""`headrace models --gpu`: what an operator reads of a GPU that is not here."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.weights.sources import describe
from server.commands.cli import main
from server.commands.fits import Found, forms_on, known_config, print_fits
from server.commands.models import _inputs
from server.config.settings import ModelsFile, ModelSpec
from server.fleet.gpus import GPUS, parse_gpus

LLAMA = ModelSpec(name="meta-llama/Llama-3.1-8B-Instruct", source="meta-llama/Llama-3.1-8B-Instruct")


def test_the_command_tells_each_form(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    models = [{"name": "microsoft/phi-4", "context": 8192}, {"name": "org/other"}]
    path.write_text(json.dumps({"default": "microsoft/phi-4", "models": models}))
    assert main(["models", "--models", str(path), "--gpu", "h100"]) == 0
    said = capsys.readouterr().out
    assert [line.split("  ")[1].strip() for line in said.splitlines()[1:4]] == ["16 bits", "fp8", "fp8, kv fp8"]
    assert said.count(" 8,192 ") == 3 and "not known" in said and "H100 80GB" in said


@pytest.mark.parametrize("text", ["abacus", "0xh200", "8xfoo", "h200x8", "65xh200", "8x", "2 xh200", "-1xh200", ""])
def test_what_is_no_number_of_a_kind_of_gpus_is_refused_in_a_line(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "--gpu", text]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and repr(text) in said and "h200 or 8xh200" in said and "l40s" in said


def on(name: str, gpus: str) -> list[Found]:
    """What comes of a model, whose shape ships, on some GPUs."""
    spec = ModelSpec(name=name, source=name)
    config = known_config(spec)
    assert config is not None
    return list(forms_on(config, spec, parse_gpus(gpus)))


def test_gpus_are_read_in_any_case_and_are_one_by_default() -> None:
    assert (parse_gpus("H200").count, str(parse_gpus("8xH200")), str(parse_gpus("4x4090"))) == (
        1, "8 x H200", "4 x GeForce RTX 4090",
    )  # fmt: skip


def test_rates_are_of_dense_products() -> None:
    """A rate with sparsity, which data sheets like to print, is twice the other's."""
    for gpu in GPUS.values():
        assert (gpu.fp8_teraflops is None) == (not gpu.does_fp8), gpu.name
        if gpu.fp8_teraflops is not None:
            assert 1.98 * gpu.teraflops < gpu.fp8_teraflops < 2.03 * gpu.teraflops, gpu.name


def test_a_form_that_a_gpu_does_not_compute_in_is_not_offered() -> None:
    titles = {name: [found.form.title for found in on(LLAMA.name, name)] for name in GPUS}
    assert titles["a100-80"] == titles["3090"] == ["16 bits"]
    assert titles["l4"] == titles["h200"] == ["16 bits", "fp8", "fp8, kv fp8"]


def test_weights_too_large_to_be_read_in_16_bits_need_files_in_fp8() -> None:
    plain, eight, _ = on("microsoft/phi-4", "4090")
    assert plain.fit.kv_tokens == 0 and eight.form.title == "fp8 files" and eight.fit.kv_tokens > 0


def test_as_many_gpus_share_a_model_as_divide_it() -> None:
    assert {found.ranks for found in on("microsoft/phi-4", "8xl40s")} == {5}
    assert {found.ranks for found in on("HuggingFaceTB/SmolLM2-135M-Instruct", "2xl40s")} == {1}
    plain, eight, _ = on("meta-llama/Llama-3.3-70B-Instruct", "2xh100")
    assert (plain.ranks, eight.form.title) == (2, "fp8")  # each reads half of the 16 bits
    assert 0 < plain.fit.kv_tokens < eight.fit.kv_tokens


def test_deepseek_r1_needs_eight_gpus_and_its_own_files() -> None:
    plain, *eight = on("deepseek-ai/DeepSeek-R1", "8xh200")
    assert plain.fit.kv_tokens == plain.most == 0 and not plain.limits
    assert [found.form.title for found in eight] == ["fp8 files", "fp8 files, kv fp8"]
    assert all(found.ranks == 8 and sorted(found.limits) == [1, 64, 256] for found in eight)
    assert not any(found.fit.kv_tokens for found in on("deepseek-ai/DeepSeek-R1", "b200"))
    assert on("deepseek-ai/DeepSeek-R1", "64xb200")[2].ranks == 64
    assert on("deepseek-ai/DeepSeek-R1", "32xl4")[1].ranks == 16  # blocks of 128 of an expert's 2,048 numbers


def test_limits_are_of_what_fits_and_are_told_as_such() -> None:
    plain = on("meta-llama/Llama-3.3-70B-Instruct", "h200")[0]
    assert sorted(plain.limits) == [1, plain.fit.kv_tokens // 2048] and plain.most < 64
    file, out = ModelsFile(default=LLAMA.name, models=(LLAMA,)), io.StringIO()
    print_fits(file, parse_gpus("2xa100-80"), out)
    said = out.getvalue().replace("\n", " ")
    assert "LIMIT, TOK/S: AT 1" in said and "Nothing of it was measured." in said and "tensor_parallel" in said
    print_fits(file, parse_gpus("a100-80"), single := io.StringIO())
    assert "tensor_parallel" not in single.getvalue() and "LIMIT" in single.getvalue()
    (spec,) = (replace(LLAMA, name="deepseek-ai/DeepSeek-R1", source="deepseek-ai/DeepSeek-R1"),)
    print_fits(ModelsFile(default=spec.name, models=(spec,)), parse_gpus("l4"), nothing := io.StringIO())
    assert "LIMIT" not in nothing.getvalue() and "does not fit" in nothing.getvalue()


def test_what_is_here_goes_before_what_is_shipped(tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 512,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    spec = replace(LLAMA, source=str(tmp_path))
    assert known_config(spec) == config
    shipped = known_config(spec, look=False)
    assert shipped is not None and shipped["hidden_size"] == 4096
    quantized = config | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 32]}}
    forms = [found.form.title for found in forms_on(quantized, spec, parse_gpus("h100"))]
    assert forms == ["16 bits", "fp8 files", "fp8 files, kv fp8"]
    (tmp_path / "config.json").write_text("[")
    assert known_config(spec) is None
    for broken in ([], {"quantization_config": "fp8"} | config):
        (tmp_path / "config.json").write_text(json.dumps(broken))
        assert known_config(spec) is None


def test_every_listed_model_is_a_line_at_least() -> None:
    out = io.StringIO()
    print_fits(ModelsFile(default=LLAMA.name, models=(LLAMA,)), parse_gpus("b200"), out)
    assert out.getvalue().count(LLAMA.name) == 6  # what fits, and how fast


@pytest.mark.parametrize(
    ("source", "inputs"),
    [
        ("random://Qwen2.5-VL-7B?text_config.num_hidden_layers=2", ("text", "image")),
        ("Qwen/Qwen2.5-VL-7B-Instruct", ("text", "image")),
        ("random://Llama-3.1-8B", ("text",)),
        ("random://no-such-model", ("text",)),
        ("org/away", ("text",)),
    ],
)
def test_what_sees_is_told_before_it_is_here(source: str, inputs: tuple[str, ...]) -> None:
    assert _inputs(describe(source), ModelSpec(name="m", source=source)) == inputs
