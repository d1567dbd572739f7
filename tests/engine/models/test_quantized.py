"""Models whose weights stay as a GGUF file has them, held against transformers with the same weights unpacked."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import save_file
from torch import nn

from engine.errors import ModelLoadError
from engine.kernels import cpu_quantized
from engine.messages import AddRequest
from engine.models import building, loader
from engine.models.quantized import QuantizedEmbedding, QuantizedLinear, quantized_bytes, round_activations
from engine.sampling_params import SamplingParams
from engine.weights.gguf import describe_model
from engine.weights.gguf_config import convert_tensor
from engine.weights.gguf_file import GGUFFile
from tests.conftest import DEFAULT_MODEL_SOURCE
from tests.engine.models.test_loader import load_from
from tests.engine.test_oracle import generate, make_engine, oracle, random_mix, run
from tests.engine.weights.gguf_samples import write_model

TinyModelDir = Callable[[str], Path]
pytestmark = pytest.mark.skipif(not cpu_quantized.is_available(), reason="no C compiler here")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def unpacked_copy(path: Path, directory: Path) -> Path:
    """The model of a GGUF file as transformers has it, its weights in fp32."""
    file, described = GGUFFile(path), describe_model(path)
    config = json.loads((described / "config.json").read_text())
    directory.mkdir()
    for name in ("config.json", "generation_config.json"):
        (directory / name).write_text((described / name).read_text())
    converted = [convert_tensor(file, name, config) for name in file.tensors]
    tensors = {name: torch.from_numpy(values.copy()) for name, values in filter(None, converted)}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def check_greedy(directory: Path, prompt: list[int], output: list[int], params: SamplingParams) -> bool:
    """Whether an output is that of transformers; if not, the first other token was as likely, to rounding."""
    expected = generate(directory, prompt, params.max_tokens)
    if output == expected:
        return True
    same = next(at for at, (a, b) in enumerate(zip(output, expected, strict=False)) if a != b)
    with torch.inference_mode():
        logits = oracle(directory)(torch.tensor([prompt + expected[:same]])).logits[0, -1]
    gap = float((logits.max() - logits[output[same]]) / logits.std())
    assert gap < 1e-3, f"token {same}: {output[same]} and not {expected[same]}, by {gap}"
    return False


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q8_0"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"])
def test_every_family_computes_what_the_unpacked_weights_do(
    family: str, kind: str, tiny_model_dir: TinyModelDir, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.gguf"
    write_model(path, tiny_model_dir(family), kind=GGMLQuantizationType[kind])
    loaded = load_from(path, dtype="float32")
    reference = load_from(unpacked_copy(path, tmp_path / "unpacked"), dtype="float32").model
    ids = torch.arange(5, 45)[None]
    with torch.inference_mode():
        expected, found = reference(ids).logits, loaded.model(ids).logits
    assert float((found - expected).abs().max() / expected.std()) < 2e-3
    assert any(isinstance(module, QuantizedLinear) for module in loaded.model.modules())
    assert loaded.num_parameters == sum(parameter.numel() for parameter in reference.parameters())
    assert loaded.weights_bytes < 0.5 * sum(parameter.nbytes for parameter in reference.parameters())


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_engine_generates_what_transformers_does(family: str, tiny_model_dir: TinyModelDir, tmp_path: Path) -> None:
    """In chunks, beside others, preempted: every row's numbers are those it has alone."""
    path = tmp_path / "tiny.gguf"
    write_model(path, tiny_model_dir(family), kind=GGMLQuantizationType.Q8_0)
    directory = unpacked_copy(path, tmp_path / "unpacked")
    engine = make_engine(path, num_blocks=24, context=90, max_batched_tokens=16)
    assert "CPU layers" in engine._runner.surgery
    requests, arrivals = random_mix(3, longest=60)
    outputs = run(engine, requests, arrivals)
    equal = [check_greedy(directory, r.prompt_token_ids, outputs[number], r.params) for number, r in requests.items()]
    assert sum(equal) >= len(requests) - 2
    assert engine.stats().preemptions > 0


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_rougher_activations_are_near_and_every_row_has_what_it_has_alone(
    family: str, tiny_model_dir: TinyModelDir, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.gguf"
    write_model(path, tiny_model_dir(family), kind=GGMLQuantizationType.Q4_0)
    engine = make_engine(path, num_blocks=24, context=90, max_batched_tokens=16, activations="int8")
    assert "CPU layers" in engine._runner.surgery
    assert bits_of(engine._runner.model) == {8} and bits_of(make_engine(path)._runner.model) == {16}
    requests, arrivals = random_mix(3, longest=60)
    outputs = run(engine, requests, arrivals)
    assert engine.stats().preemptions > 0
    alone = make_engine(path, context=90, activations="int8", prefix_cache=False)
    for number, request in requests.items():
        assert run(alone, {number: request}, {number: 0})[number] == outputs[number]
    finer = load_from(path, dtype="float32").model
    rougher = load_from(path, dtype="float32").model
    round_activations(rougher, 8)
    ids = torch.arange(5, 45)[None]
    with torch.inference_mode():
        expected, found = finer(ids).logits, rougher(ids).logits
    assert 1e-4 < float((found - expected).square().mean().sqrt() / expected.std()) < 0.05


def bits_of(model: nn.Module) -> set[int]:
    """What the products of a model round their activations to."""
    return {module.product.of_c.bits for module in model.modules() if isinstance(module, QuantizedLinear)}


def test_projections_of_different_formats_are_one_product(tiny_model_dir: TinyModelDir, tmp_path: Path) -> None:
    """As K-quants have them, which give values more bits than queries."""
    path = tmp_path / "tiny.gguf"
    write_model(path, tiny_model_dir("qwen2"), kind=GGMLQuantizationType.Q4_0, values=GGMLQuantizationType.Q8_0)
    engine = make_engine(path)
    layers = [module for module in engine._runner.model.modules() if isinstance(module, QuantizedLinear)]
    formats = {tuple(weight.format for weight in layer.weights) for layer in layers}
    assert (2, 2, 8) in formats, "queries, keys and values"
    prompt = [(7 * i) % 300 + 3 for i in range(21)]
    request = AddRequest(1, prompt, SamplingParams(max_tokens=20, temperature=0))
    expected = generate(unpacked_copy(path, tmp_path / "unpacked"), prompt, 20)
    assert run(engine, {1: request}, {1: 0})[1] == expected


def test_what_is_in_no_known_format_is_unpacked(tiny_model_dir: TinyModelDir, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_model(path, tiny_model_dir("llama"), kind=GGMLQuantizationType.F16)
    loaded = load_from(path, dtype="float32")
    assert not any(isinstance(module, QuantizedLinear | QuantizedEmbedding) for module in loaded.model.modules())
    reference = load_from(unpacked_copy(path, tmp_path / "unpacked"), dtype="float32").model
    ids = torch.arange(5, 45)[None]
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(ids).logits, reference(ids).logits)


def test_nothing_is_converted_and_the_file_says_what_is_needed(
    tiny_model_dir: TinyModelDir, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.gguf"
    write_model(path, tiny_model_dir("llama"), kind=GGMLQuantizationType.Q8_0)
    load_from(path, dtype="float32")
    assert not list(cache.rglob("*.safetensors"))
    monkeypatch.setattr(building, "available_memory", lambda device: quantized_bytes(GGUFFile(path)) - 1)
    with pytest.raises(ModelLoadError, match="the weights need"):
        load_from(path, dtype="float32")


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"dtype": "float32", "fusion": False}])
def test_who_asks_for_another_kind_of_product_gets_it(
    options: dict[str, object], tiny_model_dir: TinyModelDir, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.gguf"
    write_model(path, tiny_model_dir("llama"), kind=GGMLQuantizationType.Q8_0)
    loaded = load_from(path, **options)
    assert not any(isinstance(module, QuantizedLinear) for module in loaded.model.modules())


def test_a_file_that_lacks_a_tensor_is_refused_by_name(tiny_model_dir: TinyModelDir, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_model(path, tiny_model_dir("llama"), kind=GGMLQuantizationType.Q8_0)
    forgotten = path.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.0.ffn_up.weight")
    (tmp_path / "less.gguf").write_bytes(forgotten)
    with pytest.raises(ModelLoadError, match=r"lacks the tensor of model\.layers\.1\.mlp\.up_proj\.weight"):
        load_from(tmp_path / "less.gguf", dtype="float32")


@pytest.mark.parametrize("name", ["blk.0.ffn_up.weight", "blk.1.attn_q.weight", "blk.0.attn_norm.weight"])
def test_a_tensor_of_another_shape_is_refused_by_name(
    name: str, tiny_model_dir: TinyModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.gguf"
    write_model(path, tiny_model_dir("llama"), kind=GGMLQuantizationType.Q8_0)

    class Misshapen(GGUFFile):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            info = self.tensors[name]
            self.tensors[name] = replace(info, shape=(info.shape[0] // 2, *info.shape[1:]))

    monkeypatch.setattr(loader, "GGUFFile", Misshapen)
    with pytest.raises(ModelLoadError, match=f"the tensor '{name}' in a shape"):
        load_from(path, dtype="float32")


def test_a_file_that_ends_early_is_refused(tiny_model_dir: TinyModelDir, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_model(path, tiny_model_dir("llama"), kind=GGMLQuantizationType.Q8_0)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(ModelLoadError, match="holds tensors that cannot be read"):
        load_from(path, dtype="float32")


@pytest.mark.slow
def test_the_default_model_generates_what_its_unpacked_weights_do(tmp_path: Path) -> None:
    from engine.weights.sources import resolve

    described = resolve(DEFAULT_MODEL_SOURCE, converts=False)
    assert described.gguf is not None
    directory = unpacked_copy(described.gguf, tmp_path / "unpacked")
    engine = make_engine(described.gguf, memory="64MiB")
    requests, arrivals = random_mix(5, longest=120, vocab=49000)
    outputs = run(engine, requests, arrivals)
    for request_id, request in requests.items():
        expected = generate(directory, request.prompt_token_ids, request.params.max_tokens)
        assert outputs[request_id] == expected


def test_rows_of_an_embedding_are_unpacked_when_they_are_asked_for() -> None:
    values = torch.randn(40, 64).numpy()
    blocks = gguf.quantize(values, GGMLQuantizationType.Q8_0)
    embedding = QuantizedEmbedding(blocks, GGMLQuantizationType.Q8_0, 64)
    ids = torch.tensor([[3, 39, 3, 0]])
    assert torch.equal(embedding(ids)[0], torch.from_numpy(gguf.dequantize(blocks, GGMLQuantizationType.Q8_0))[ids[0]])


def test_loading_reports_its_progress(tiny_model_dir: TinyModelDir, tmp_path: Path) -> None:
    from engine.config import EngineConfig

    path = tmp_path / "tiny.gguf"
    write_model(path, tiny_model_dir("llama"), kind=GGMLQuantizationType.Q8_0)
    told: list[float | None] = []
    config = EngineConfig(name="test", source=str(path), dtype="float32")
    loader.load(config, torch.device("cpu"), "eager", lambda stage, fraction: told.append(fraction))
    assert len([fraction for fraction in told if fraction]) > 5
