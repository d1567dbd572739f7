"""The loader gives a model fit to serve, and a clear error for one that is not."""

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from engine.cache import no_progress
from engine.config import EngineConfig
from engine.device.device import computes_in_bf16
from engine.errors import ModelLoadError
from engine.models import building
from engine.models.experts import Fp8Experts
from engine.models.fp8_blocks import BlockFp8Linear
from engine.models.fusion import pack_linears
from engine.models.loaded import LoadedModel
from engine.models.loader import load
from tests.engine.weights.gguf_samples import write_model

CPU = torch.device("cpu")
TINY = "random://llama?hidden_size=64&intermediate_size=64&num_hidden_layers=2&vocab_size=300&num_attention_heads=4"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of this test's own."""
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def copy_of(tiny_model_dir: Callable[[str], Path], tmp_path: Path) -> Path:
    """A tiny Llama whose files a test may spoil."""
    return Path(shutil.copytree(tiny_model_dir("llama"), tmp_path / "copy"))


def load_from(source: str | Path, **options: object) -> LoadedModel:
    """Load on the CPU with eager attention, which every architecture has."""
    return load(EngineConfig(name="test", source=str(source), **options), CPU, "eager", no_progress)  # type: ignore[arg-type]


def edit_json(path: Path, **changes: object) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) if path.exists() else {}
    content |= changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_a_directory_loads_as_it_is(copy_of: Path) -> None:
    loaded = load_from(copy_of, dtype="float32")
    assert loaded.directory == copy_of and loaded.architecture == "LlamaForCausalLM"
    assert (loaded.vocab_size, loaded.max_context, loaded.eos_token_ids) == (320, 512, [2])
    assert loaded.num_parameters == 133_568 and loaded.weights_bytes == 4 * loaded.num_parameters
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.text_config is loaded.hf_config
    reference = AutoModelForCausalLM.from_pretrained(copy_of)
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(ids).logits, reference(ids).logits)


def test_generation_config_goes_before_config(copy_of: Path) -> None:
    edit_json(copy_of / "generation_config.json", eos_token_id=[7, 9], temperature=0.6, top_p=0.9, do_sample=True)
    loaded = load_from(copy_of)
    assert loaded.eos_token_ids == [7, 9]
    assert loaded.generation_defaults == {"temperature": 0.6, "top_p": 0.9, "do_sample": True}
    (copy_of / "generation_config.json").unlink()
    assert load_from(copy_of).eos_token_ids == [2]


def test_all_that_generation_config_says_of_generating_is_passed_on(copy_of: Path) -> None:
    """And nothing that JSON or a line of the log could choke on."""
    said = {"do_sample": False, "no_repeat_ngram_size": 3, "max_new_tokens": 2048, "typical_p": 0.5}
    harmless = {"bos_token_id": 1, "transformers_version": "5", "_from_model_config": True, "use_cache": True}
    hostile = {"top_p": float("nan"), "top_k": 10**400, "min_p": float("inf"), "a\nb": 1}
    (copy_of / "generation_config.json").write_text(json.dumps(said | harmless | hostile))
    assert load_from(copy_of).generation_defaults == said


def test_dtype_is_what_was_asked(copy_of: Path) -> None:
    assert load_from(copy_of, dtype="bfloat16").model.dtype == torch.bfloat16
    assert load_from(copy_of, dtype="float32").model.dtype == torch.float32


def test_progress_is_told_in_stages_and_fractions(copy_of: Path) -> None:
    told: list[tuple[str, float | None]] = []
    config = EngineConfig(name="t", source=str(copy_of))
    load(config, CPU, "eager", lambda stage, fraction: told.append((stage, fraction)))
    assert list(dict(told)) == ["reading the configuration", "loading the weights"]
    fractions = [fraction for _, fraction in told if fraction is not None]
    assert len(fractions) > 5 and fractions == sorted(fractions) and 0.5 < fractions[-1] < 1


def test_missing_weights_are_not_made_up(copy_of: Path) -> None:
    weights = load_file(copy_of / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"], weights["model.norm.weight"]
    save_file(weights, copy_of / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight .*1 more"):
        load_from(copy_of)


def test_weights_of_another_shape_are_refused(copy_of: Path) -> None:
    edit_json(copy_of / "config.json", intermediate_size=128)
    with pytest.raises(ModelLoadError, match="mlp"):
        load_from(copy_of)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "from_the_future"}, "does not have"),
        ({"model_type": None, "architectures": None}, "does not have|cannot be loaded"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}, "never run|does not have"),
    ],
)
def test_unknown_architectures_are_refused(changes: dict[str, object], said: str, copy_of: Path) -> None:
    marker = copy_of / "executed"
    (copy_of / "code.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: pass\n")
    edit_json(copy_of / "config.json", **changes)
    with pytest.raises(ModelLoadError, match=said) as caught:
        load_from(copy_of)
    assert not marker.exists() and "\n" not in caught.value.message


def test_spoilt_files_are_refused(copy_of: Path) -> None:
    (copy_of / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ModelLoadError, match="test cannot be loaded"):
        load_from(copy_of)
    (copy_of / "config.json").write_text("{")
    with pytest.raises(ModelLoadError):
        load_from(copy_of)


def test_weights_beyond_the_memory_are_refused_before_they_are_read(
    copy_of: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "available_memory", lambda device: 1000)
    with pytest.raises(ModelLoadError, match=r"0\.0 GiB are free"):
        load_from(copy_of)
    with pytest.raises(ModelLoadError, match=r"0\.0 GiB are free"):
        load_from(TINY)


def test_random_weights_come_from_their_seed() -> None:
    first, again = load_from(TINY), load_from(TINY)
    other = load_from(TINY + "&seed=7")
    names = dict(first.model.named_parameters())
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, names[name]), name
    assert not torch.equal(other.model.get_input_embeddings().weight, first.model.get_input_embeddings().weight)
    weight = first.model.get_input_embeddings().weight.float()
    assert 0.018 < weight.std() < 0.022
    assert first.model.dtype == torch.bfloat16 or not computes_in_bf16()


def test_drawing_random_weights_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load_from(TINY)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "phi3", "deepseek_v3"])
def test_random_models_have_right_norms_and_rotations(family: str, tiny_model_dir: Callable[[str], Path]) -> None:
    loaded = load_from(f"random://{tiny_model_dir(family)}", dtype="float32")
    reference = load_from(tiny_model_dir(family), dtype="float32")
    buffers = dict(reference.model.named_buffers())
    for name, buffer in loaded.model.named_buffers():
        if "inv_freq" in name:
            torch.testing.assert_close(buffer, buffers[name])
    with torch.inference_mode():
        logits = loaded.model(torch.arange(3, 30)[None]).logits
    assert torch.isfinite(logits).all() and 0.001 < logits.std() < 10
    assert loaded.eos_token_ids == [2]


def test_a_random_model_whose_configuration_is_in_fp8_is_drawn_in_it(
    tmp_path: Path, tiny_model_dir: Callable[[str], Path]
) -> None:
    """The very numbers of the same draw in fp32, rounded: what makes keys and values of latents stays as it is."""
    config = json.loads((tiny_model_dir("deepseek_v3") / "config.json").read_text(encoding="utf-8"))
    config |= {"q_lora_rank": 32, "kv_lora_rank": 24}  # with what is rotated, multiples of 16
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    source = f"random://{tmp_path / 'config.json'}"
    plain = load_from(source, dtype="float32", quantization="none").model
    loaded = load_from(source, dtype="float32")
    found, linears, experts = dict(plain.named_modules()), 0, 0
    for path, module in loaded.model.named_modules():
        if isinstance(module, BlockFp8Linear):
            linears += 1
            torch.testing.assert_close(module.unpacked(), found[path].weight, rtol=0.07, atol=1e-3)
        elif isinstance(module, Fp8Experts):
            experts += 1
            gate_up, down = module.unpacked(3)
            torch.testing.assert_close(gate_up, found[path].gate_up_proj[3], rtol=0.07, atol=1e-3)
            torch.testing.assert_close(down, found[path].down_proj[3], rtol=0.07, atol=1e-3)
        elif type(module) is torch.nn.Linear:
            assert path.endswith(("kv_b_proj", "lm_head")), path
            torch.testing.assert_close(module.weight, found[path].weight)
    assert (linears, experts) == (3 * 4 + 3 + 2 * 3, 2) and loaded.fp8_linears == linears
    assert loaded.weights_bytes < 0.5 * 4 * loaded.num_parameters


def test_bf16_is_not_packed_where_the_processor_has_no_layout_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8, dtype=torch.bfloat16))
    assert pack_linears(model, torch.bfloat16) == 0 and type(model[0]) is torch.nn.Linear
    assert pack_linears(torch.nn.Sequential(torch.nn.Linear(8, 8)), torch.float32) == 1


def test_packing_holds_no_weight_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(4)))
    unpacked = [weakref.ref(linear.weight) for linear in model]
    alive: list[int] = []
    reorder = torch.ops.mkldnn._reorder_linear_weight

    def counted(weight: torch.Tensor, rows: int | None) -> torch.Tensor:
        alive.append(sum(reference() is not None for reference in unpacked))
        return torch.as_tensor(reorder(weight, rows))

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", counted)
    assert pack_linears(model, torch.float32) == 4
    assert alive == [4, 3, 2, 1]


def test_what_a_gguf_file_will_take_is_counted_before_it_is_converted(
    tiny_model_dir: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "tiny.gguf", tiny_model_dir("llama"))
    monkeypatch.setattr(building, "available_memory", lambda device: 1000)
    with pytest.raises(ModelLoadError, match=r"0\.0 GiB are free"):
        load_from(tmp_path / "tiny.gguf")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
