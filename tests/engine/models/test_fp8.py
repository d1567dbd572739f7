"""FP8 weights, FP8 checkpoints and an FP8 KV cache, on the CPU, where plain torch does what the GPU does."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine.cache import no_progress
from engine.config import EngineConfig
from engine.device.device import check_fp8
from engine.errors import ConfigError, ModelLoadError
from engine.kernels.reference import E4M3_MAX, Rounded, quantize_rows, saturate
from engine.messages import AddRequest
from engine.models.fp8 import Fp8Linear, check_products, quantize_linears, whole_rows
from engine.models.fp8_blocks import BlockFp8Linear
from engine.models.fp8_checkpoint import read_layout
from engine.models.fusion import MergedLinear
from engine.models.loaded import LoadedModel
from engine.models.loader import load
from engine.sampling_params import SamplingParams
from tests.engine.test_oracle import make_engine, run
from tests.gpu import fp8_checks
from tests.tiny_models import VOCAB_SIZE

TinyModelDir = Callable[[str], Path]
DENSE = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "mistral")
IDS = torch.tensor([[(7 * i) % (VOCAB_SIZE - 3) + 3 for i in range(40)]])


def load_from(source: Path | str, **options: Any) -> LoadedModel:
    config = EngineConfig(name="test", source=str(source), **{"dtype": "float32", **options})
    return load(config, torch.device("cpu"), "eager", no_progress)


def logits_of(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return torch.as_tensor(model(IDS).logits[0])


def moved(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().mean() / theirs.std())


def weight_of(linear: Fp8Linear | BlockFp8Linear) -> torch.Tensor:
    """In fp32."""
    return linear.unpacked() if isinstance(linear, BlockFp8Linear) else linear.weight.float() * linear.scale[:, None]


def dequantised(model: PreTrainedModel) -> PreTrainedModel:
    """transformers' model with each linear in FP8 as a plain one of the same numbers."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Fp8Linear | BlockFp8Linear):
                linear = nn.Linear(child.in_features, child.out_features, bias=child.bias is not None)
                linear.weight = nn.Parameter(weight_of(child))
                linear.bias = child.bias
                setattr(parent, name, linear)
    return model.requires_grad_(False)


@pytest.fixture
def plain_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations stay as they are, so that equal models are equal: rounded, those that differ in their last bit may
    come out a sixteenth apart."""

    def product(self: Fp8Linear | BlockFp8Linear, rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(rows, weight_of(self), self.bias)

    monkeypatch.setattr(Fp8Linear, "plain_product", product)
    monkeypatch.setattr(BlockFp8Linear, "plain_product", product)


def test_rows_are_quantised_to_the_nearest_number() -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 300) * torch.logspace(-4, 4, 20)[:, None]
    numbers, scales = quantize_rows(x)
    assert numbers.dtype == torch.float8_e4m3fn and scales.shape == (20, 1)
    assert torch.equal(numbers.float().abs().amax(1), torch.full((20,), E4M3_MAX))
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    distance = (x / scales)[..., None] - every[every.isfinite()]
    best = distance.abs().amin(-1)
    torch.testing.assert_close((x / scales - numbers.float()).abs(), best, rtol=1e-3, atol=1e-4)


def test_zeros_and_nans_stay_what_they_are() -> None:
    x = torch.zeros(3, 16)
    x[1, 2], x[2, 2] = torch.nan, torch.inf
    numbers, scales = quantize_rows(x)
    product = numbers.float() * scales
    assert torch.equal(product[0], x[0]) and bool(product[1:].isnan().any(1).all())
    kept = saturate(torch.tensor([1e4, -1e4, 449.0, torch.nan]), torch.float8_e4m3fn).float()
    assert kept[:3].tolist() == [E4M3_MAX, -E4M3_MAX, E4M3_MAX] and bool(kept[3].isnan())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_is_the_product_of_what_was_quantised(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(1)
    linear = nn.Linear(96, 48, bias=bias).to(dtype)
    x = torch.randn(2, 5, 96).to(dtype)
    ours = Fp8Linear.quantized(linear.weight, linear.bias)
    rows, row_scales = quantize_rows(x.view(10, 96))
    exact = (rows.double() * row_scales) @ (ours.weight.double() * ours.scale[:, None]).t()
    exact = exact + (linear.bias.double() if bias else 0.0)
    with torch.inference_mode():
        found, plain = ours(x), linear(x)
    assert found.dtype == dtype and found.shape == (2, 5, 48)
    tolerance = 1e-5 if dtype == torch.float32 else 0.01
    torch.testing.assert_close(found.double().view(10, 48), exact, rtol=tolerance, atol=tolerance)
    assert 0.001 < moved(found.float(), plain.float()) < 0.05


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(2)
    linear = Fp8Linear.quantized(torch.randn(32, 64), None)
    rows = torch.randn(4, 64)
    alone = linear(rows[1:2])
    rows[0] *= 1e6
    torch.testing.assert_close(linear(rows)[1:2], alone)


@pytest.mark.parametrize("family", DENSE)
def test_families_keep_their_logits(family: str, tiny_model_dir: TinyModelDir) -> None:
    plain = load_from(tiny_model_dir(family))
    ours = load_from(tiny_model_dir(family), quantization="fp8")
    linears = [name for name, module in plain.model.named_modules() if type(module) is nn.Linear]
    last = [name for name, module in ours.model.get_decoder().layers[-1].named_modules() if type(module) is nn.Linear]
    assert ours.fp8_linears == len(linears) - len(last) - 1 and len(last) >= 4
    assert type(ours.model.get_output_embeddings()) is nn.Linear
    assert ours.weights_bytes < plain.weights_bytes * 0.7
    assert 0.001 < moved(logits_of(ours.model), logits_of(plain.model)) < fp8_checks.MOVED


@pytest.mark.usefixtures("plain_activations")
@pytest.mark.parametrize("family", DENSE)
def test_the_engine_says_what_the_quantised_model_says(family: str, tiny_model_dir: TinyModelDir) -> None:
    """Merged and replaced layers included: greedy, against `generate` on plain linears of the same numbers."""
    oracle = dequantised(load_from(tiny_model_dir(family), quantization="fp8").model)
    engine = make_engine(tiny_model_dir(family), quantization="fp8")
    modules = list(engine._runner.model.modules())  # type: ignore[attr-defined]
    merged = [module for module in modules if isinstance(module, MergedLinear)]
    assert sum(type(module.linear) is nn.Linear for module in merged) <= 2, "more than the last layer's"
    assert any(isinstance(module, Fp8Linear) for module in modules)
    prompts = [IDS[0, :length].tolist() for length in (3, 17, 40)]
    requests = {
        number: AddRequest(number, prompt, SamplingParams(max_tokens=6, temperature=0))
        for number, prompt in enumerate(prompts)
    }
    outputs = run(engine, requests, dict.fromkeys(requests, 0))
    for number, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            found = oracle.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        assert outputs[number] == found[0, len(prompt) :].tolist(), family


def test_only_what_fits_is_quantised() -> None:
    decoder = nn.ModuleDict({"fits": nn.Linear(32, 48), "narrow": nn.Linear(32, 24), "embedding": nn.Embedding(16, 16)})
    assert quantize_linears(decoder, {}) == 1
    assert isinstance(decoder["fits"], Fp8Linear) and type(decoder["narrow"]) is nn.Linear
    check_products(decoder)  # has nothing to say on a CPU


def test_older_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(ConfigError, match=r"kv_dtype: fp8 needs .* 8\.9 or newer, and cuda:0 has 8\.6"):
        check_fp8("kv_dtype", torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    check_fp8("kv_dtype", torch.device("cuda:0"))
    check_fp8("kv_dtype", torch.device("cpu"))


LAYOUTS: dict[str, dict[str, Any]] = {
    "compressed-tensors, by channel": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False},
                "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
            }
        },
    },
    "compressed-tensors, by tensor, static": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False},
                "input_activations": {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False},
            }
        },
    },
    "fp8, by tensor": {"quant_method": "fp8", "activation_scheme": "static"},
    "fp8, by block": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 48]},
    "fbgemm_fp8": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
}
EXCEPTIONS = {"compressed-tensors": "ignore", "fp8": "modules_to_not_convert", "fbgemm_fp8": "modules_to_not_convert"}


def write_checkpoint(source: Path, target: Path, layout: str) -> dict[str, torch.Tensor]:
    """A tiny model in an FP8 layout; returns its weights as they are meant, fp32.

    The head and one projection are on the list of exceptions.
    """
    shutil.copytree(source, target)
    quantization = dict(LAYOUTS[layout])
    kept = ["lm_head", "model.layers.1.mlp.down_proj"]
    quantization[EXCEPTIONS[quantization["quant_method"]]] = kept
    meant, stored = load_file(target / "model.safetensors"), {}
    for name, weight in meant.items():
        module = name.removesuffix(".weight")
        if not name.endswith("_proj.weight") or module in kept:
            stored[name] = weight.bfloat16() if module in kept else weight
            meant[name] = stored[name].float()
            continue
        stored[name], scale, spread = quantised_as(weight, layout, quantization)
        block = quantization.get("weight_block_size")
        stored[f"{module}.weight_scale{'_inv' if block else ''}"] = scale
        if "static" in json.dumps(quantization) or "static" in layout:
            stored[f"{module}.input_scale"] = torch.tensor(0.01)
        meant[name] = stored[name].float() * spread
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, target / "model.safetensors")
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return meant


def quantised_as(
    weight: torch.Tensor, layout: str, quantization: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Numbers, the scale as it is stored, and as it is spread over the weight."""
    if block := quantization.get("weight_block_size"):
        height, width = block
        rows, columns = -(-weight.shape[0] // height), -(-weight.shape[1] // width)
        scale = torch.empty(rows, columns)
        for row in range(rows):
            for column in range(columns):
                part = weight[row * height : (row + 1) * height, column * width : (column + 1) * width]
                scale[row, column] = part.abs().max() / E4M3_MAX
        spread = scale.repeat_interleave(height, 0)[: weight.shape[0]]
        spread = spread.repeat_interleave(width, 1)[:, : weight.shape[1]]
    elif "by tensor" in layout:
        scale = spread = (weight.abs().max() / E4M3_MAX).to(torch.bfloat16 if "compressed" in layout else torch.float32)
    else:
        scale = spread = weight.abs().amax(1, keepdim=True) / E4M3_MAX
    return saturate(weight / spread, torch.float8_e4m3fn), scale, spread.float()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_checkpoints_are_read(layout: str, family: str, tiny_model_dir: TinyModelDir, tmp_path: Path) -> None:
    meant = write_checkpoint(tiny_model_dir(family), tmp_path / "model", layout)
    ours = load_from(tmp_path / "model")
    num_linears = sum(name.endswith("_proj.weight") for name in meant)
    assert ours.fp8_linears == num_linears - 1
    layers = ours.model.get_decoder().layers
    assert type(layers[1].mlp.down_proj) is nn.Linear and layers[1].mlp.down_proj.weight.dtype == torch.float32
    for name in meant:
        module = ours.model.get_submodule(name.removesuffix(".weight")) if name.endswith("_proj.weight") else None
        if isinstance(module, Fp8Linear | BlockFp8Linear):
            exact = "block" not in layout  # of other blocks quantised anew: half a step of e4m3 is 1/16 of a number
            rtol, atol = (1e-6, 0.0) if exact else (1 / 15, 1e-3)
            torch.testing.assert_close(weight_of(module), meant[name], rtol=rtol, atol=atol)
    oracle = AutoModelForCausalLM.from_pretrained(tiny_model_dir(family), dtype=torch.float32)
    missing, _ = oracle.load_state_dict(meant, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    oracle.tie_weights()
    unpacked = load_from(tmp_path / "model", quantization="none")
    assert unpacked.fp8_linears == 0
    torch.testing.assert_close(logits_of(unpacked.model), logits_of(oracle), rtol=1e-3, atol=1e-3)
    assert moved(logits_of(ours.model), logits_of(oracle)) < fp8_checks.MOVED


@pytest.mark.usefixtures("plain_activations")
def test_a_checkpoint_serves(tiny_model_dir: TinyModelDir, tmp_path: Path) -> None:
    """A whole engine over one, with a projection that stayed apart."""
    write_checkpoint(tiny_model_dir("llama"), tmp_path / "model", "compressed-tensors, by channel")
    oracle = dequantised(load_from(tmp_path / "model").model)
    engine = make_engine(tmp_path / "model")
    prompt = IDS[0, :21].tolist()
    request = AddRequest(1, prompt, SamplingParams(max_tokens=8, temperature=0))
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        wanted = oracle.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert run(engine, {1: request}, {1: 0})[1] == wanted[0, 21:].tolist()


def test_a_checkpoint_without_a_scale_is_refused(tiny_model_dir: TinyModelDir, tmp_path: Path) -> None:
    write_checkpoint(tiny_model_dir("llama"), tmp_path / "model", "fbgemm_fp8")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.0.mlp.up_proj.weight_scale"]
    save_file(tensors, path)
    with pytest.raises(ModelLoadError, match=r"lacks model\.layers\.0\.mlp\.up_proj\.weight_scale"):
        load_from(tmp_path / "model")
    tensors["model.layers.0.mlp.up_proj.weight_scale"] = torch.ones(7, 1)
    save_file(tensors, path)
    with pytest.raises(ModelLoadError, match=r"up_proj\.weight_scale in the shape \[7, 1\]"):
        load_from(tmp_path / "model")
    tensors["model.layers.0.mlp.up_proj.weight_scale"] = torch.ones(96, 1)
    save_file(tensors | {"model.layers.0.surprise": torch.ones(1)}, path)
    with pytest.raises(ModelLoadError, match=r"has model\.layers\.0\.surprise, and the model has no place"):
        load_from(tmp_path / "model")


@pytest.mark.parametrize(
    ("quantization", "said"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({}, "an unnamed method"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fp8 in the format e5m2"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"FP8 in blocks of \[128\]"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized",
          "config_groups": {"g": {"weights": {"num_bits": 4, "type": "int", "strategy": "group"}}}}, "4-bit int"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized",
          "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float", "strategy": "group"}}}}, "by group"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {}}, "the format"),
        (LAYOUTS["compressed-tensors, by channel"] | {"sparsity_config": {"format": "sparse-24"}}, "sparse-24"),
    ],
)  # fmt: skip
def test_other_quantisations_are_refused_by_name(quantization: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelLoadError, match=f"quantised with .*{said}"):
        read_layout(quantization)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_the_check_of_products_holds_here(dtype: torch.dtype, bias: bool) -> None:
    fp8_checks.products_are_right("cpu", dtype, 5, 64, 96, bias=bias)


def test_the_checks_of_engines_hold_here(tiny_model_dir: TinyModelDir) -> None:
    fp8_checks.scores_stay(tiny_model_dir("llama"), "cpu", attention="reference")
    engine = fp8_checks.steps_run(tiny_model_dir("qwen2"), "cpu", attention="reference", graphs=True)
    assert engine._runner.loaded.fp8_linears == 14


@pytest.mark.parametrize("family", DENSE)
def test_kv_cache_in_fp8(family: str, tiny_model_dir: TinyModelDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a quarter of fp32's, and does what one in fp32 does whose keys and values were rounded."""
    directory = tiny_model_dir(family)
    options: dict[str, Any] = {"attention": "reference", "num_blocks": 40}
    plain, ours = (make_engine(directory, **options, kv_dtype=kind)._runner for kind in ("auto", "fp8"))
    assert {cache.k.dtype for cache in ours.caches.values()} == {torch.float8_e4m3fn}  # type: ignore[attr-defined]
    assert ours.kv_bytes * 4 == plain.kv_bytes  # type: ignore[attr-defined]
    before = fp8_checks.scores(directory, "cpu", attention="reference")
    found = fp8_checks.scores(directory, "cpu", attention="reference", kv_dtype="fp8")
    assert 0.0001 < moved(found, before) < fp8_checks.MOVED

    def round_to_fp8(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return saturate(x, torch.float8_e4m3fn).to(dtype)

    monkeypatch.setattr("engine.attention.reference.saturate", round_to_fp8)
    rounded = fp8_checks.scores(directory, "cpu", attention="reference")
    torch.testing.assert_close(found, rounded, rtol=1e-4, atol=1e-4)


def test_blocks_in_fp8_can_be_wiped(tiny_model_dir: TinyModelDir) -> None:
    engine = make_engine(tiny_model_dir("llama"), attention="reference", kv_dtype="fp8")
    runner: Any = engine._runner
    for cache in runner.caches.values():
        cache.k.view(torch.uint8).fill_(0x7F)
    runner.wipe_blocks([1, 2], 4)
    found = runner.caches[0].k.float().isnan()
    assert not bool(found[:, 4:12].any()) and bool(found[:, :4].all()) and bool(found[:, 12:].all())


@pytest.mark.parametrize("attention", ["auto", "cpu", "sdpa"])
def test_kv_cache_in_fp8_is_refused_where_it_is_not_done(attention: str, tiny_model_dir: TinyModelDir) -> None:
    with pytest.raises(ConfigError, match="kv_dtype: fp8 is not done by attention"):
        make_engine(tiny_model_dir("llama"), attention=attention, kv_dtype="fp8")


def fake_scaled_mm(refuses_bias: bool, biases: list[bool]) -> Callable[..., torch.Tensor]:
    """What `torch._scaled_mm` does on a GPU, in plain torch."""

    def product(
        rows: torch.Tensor, weight: torch.Tensor, *, scale_a: torch.Tensor, scale_b: torch.Tensor,
        bias: torch.Tensor | None, out_dtype: torch.dtype, use_fast_accum: bool,
    ) -> torch.Tensor:  # fmt: skip
        biases.append(bias is not None)
        if bias is not None and refuses_bias:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmulAlgoGetHeuristic`")
        assert bias is None or bias.dtype == torch.bfloat16, "it adds no other bias"
        found = (rows.float() @ weight.float() * scale_a * scale_b).to(out_dtype)
        return found if bias is None else found + bias

    return product


@pytest.mark.parametrize("refuses_bias", [False, True])
@pytest.mark.parametrize(("kind", "rows_kind"), [("bfloat16", "bfloat16"), ("float32", "bfloat16")])
def test_a_bias_is_added_whether_or_not_the_product_adds_it(
    refuses_bias: bool, kind: str, rows_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuBLAS adds none in fp32, nor to products of some shapes (bench/LOG.md, 2026-11-26)."""
    biases: list[bool] = []
    monkeypatch.setattr(torch, "_scaled_mm", fake_scaled_mm(refuses_bias, biases))
    torch.manual_seed(1)
    dtype, rows_dtype = getattr(torch, kind), getattr(torch, rows_kind)
    linear = Fp8Linear.quantized(torch.randn(48, 32).to(dtype), torch.randn(48).to(dtype))
    rows = torch.randn(3, 32).to(rows_dtype)
    for _ in range(2):
        rounded = Rounded(*quantize_rows(rows), rows.dtype)
        torch.testing.assert_close(linear._product_on_cuda(rounded), linear.plain_product(rows), rtol=0.02, atol=0.05)
    adds = dtype == torch.bfloat16
    expected = [False, False] if not adds else [True, False, False] if refuses_bias else [True, True]
    assert biases == expected, "a bias that was refused once is not tried again"


def test_another_failure_of_a_product_is_no_lack_of_a_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch, "_scaled_mm", lost)
    linear = Fp8Linear.quantized(torch.randn(48, 32).bfloat16(), torch.randn(48).bfloat16())
    with pytest.raises(RuntimeError, match="assert triggered"):
        linear._product_on_cuda(Rounded(*quantize_rows(torch.randn(3, 32)), torch.bfloat16))


def test_a_model_is_held_against_itself_without_the_rounding_of_activations() -> None:
    model = nn.Sequential(Fp8Linear.quantized(torch.randn(48, 32), torch.randn(48)))
    linear, rows = model[0], torch.randn(5, 32)
    exact = nn.functional.linear(rows, linear.weight.float() * linear.scale[:, None], linear.bias)
    rounded = model(rows)
    with whole_rows(model):
        torch.testing.assert_close(model(rows), exact)
    assert torch.equal(model(rows), rounded) and not torch.allclose(rounded, exact, rtol=1e-3)


def test_rows_are_rounded_by_exact_quotients() -> None:
    """A number over a tensor is not that: torch multiplies by the rounded reciprocal."""
    torch.manual_seed(0)
    rows = torch.randn(20000, 64).bfloat16()
    largest = rows.double().abs().amax(-1, keepdim=True)
    factor = (E4M3_MAX / largest).float()
    wanted = (rows.float() * factor).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    assert torch.equal(quantize_rows(rows)[0].view(torch.uint8), wanted.view(torch.uint8))
