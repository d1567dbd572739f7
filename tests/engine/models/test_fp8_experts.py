"""A checkpoint in DeepSeek-R1's own layout: FP8 in blocks, experts one by one, biases of routers, a layer too many."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from engine.errors import ModelLoadError
from engine.kernels.reference import quantize_blocks, spread_blocks
from engine.messages import AddRequest
from engine.models.experts import Fp8Experts
from engine.models.fp8_blocks import BlockFp8Linear
from engine.sampling_params import SamplingParams
from tests.engine.models.test_experts import unpacked
from tests.engine.models.test_fp8 import load_from
from tests.engine.models.test_fp8 import plain_activations as plain_activations
from tests.engine.ranks.engines import shared_engine
from tests.engine.test_oracle import generate, make_engine, run
from tests.gpu.fp8_checks import PROMPT, scores, scores_by
from tests.tiny_models import COMMON, FAMILIES

R1 = FAMILIES["deepseek_v3"] | {
    "hidden_size": 192, "intermediate_size": 384, "moe_intermediate_size": 256, "n_routed_experts": 8,
    "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "q_lora_rank": 144, "kv_lora_rank": 48,
    "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
}  # fmt: skip
"""With sides that are whole blocks of 128, and sides that are not."""
MOVED, MOVED_IN_PARTS = 0.16, 0.25
"""How far rounding may move the scores of a prompt, on average and as a share of their spread. Weights are drawn large,
so a token may go to other experts; and parts of so small a model end within blocks, and are quantised anew."""
FURTHER = ("embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.head")


def write_r1(work: Path) -> tuple[Path, Path]:
    """Directories of a tiny model in R1's layout, and of the same weights in fp32."""
    packed, plain = work / "packed", work / "plain"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**COMMON | R1), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0.0, 1.2 * parameter.shape[-1] ** -0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.uniform_(-0.2, 0.2)
    model.save_pretrained(plain)
    meant, stored = load_file(plain / "model.safetensors"), {}
    for name, weight in meant.items():
        if name.endswith("_proj.weight") or "kv_a_proj" in name:
            stored[name], scale = quantize_blocks(weight)
            stored[name.replace(".weight", ".weight_scale_inv")] = scale
            meant[name] = stored[name].float() * spread_blocks(scale, weight.shape)
        elif not name.endswith("e_score_correction_bias"):
            stored[name] = weight.bfloat16()
            meant[name] = stored[name].float()
        else:
            stored[name] = weight
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
    last = {name: tensor for name, tensor in stored.items() if ".layers.2." in name}
    stored |= {name.replace(".layers.2.", ".layers.3."): tensor.clone() for name, tensor in last.items()}
    stored |= {f"model.layers.3.{name}.weight": torch.ones(4, 4, dtype=torch.bfloat16) for name in FURTHER}
    shutil.copytree(plain, packed)
    write(packed, stored)
    return packed, plain


def write(directory: Path, tensors: dict[str, torch.Tensor], **changes: Any) -> None:
    """A checkpoint's tensors, in two files, and what config.json says of them."""
    (directory / "model.safetensors").unlink(missing_ok=True)
    names = sorted(tensors)
    files = {name: f"model-0000{1 + (at > len(names) // 2)}-of-00002.safetensors" for at, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name].contiguous() for name in names if files[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
    } | changes  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def r1(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_r1(tmp_path_factory.mktemp("r1"))


def stored(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def experts_of(model: Any, layer: int) -> Fp8Experts:
    experts = model.get_decoder().layers[layer].mlp.experts
    assert isinstance(experts, Fp8Experts)
    return experts


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return torch.equal(ours.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8))


def test_every_number_of_the_experts_is_kept(r1: tuple[Path, Path]) -> None:
    model, files = load_from(r1[0]).model, stored(r1[0])
    for layer in (1, 2):
        experts = experts_of(model, layer)
        for number in range(8):
            prefix = f"model.layers.{layer}.mlp.experts.{number}."
            for name, ours, scale in (
                ("gate", experts.gate_up_proj[number, :256], experts.gate_up_scale[number, :2]),
                ("up", experts.gate_up_proj[number, 256:], experts.gate_up_scale[number, 2:]),
                ("down", experts.down_proj[number], experts.down_scale[number]),
            ):
                assert same(ours, files[f"{prefix}{name}_proj.weight"])
                assert torch.equal(scale, files[f"{prefix}{name}_proj.weight_scale_inv"])
        router = model.get_decoder().layers[layer].mlp.gate
        name = f"model.layers.{layer}.mlp.gate.e_score_correction_bias"
        assert torch.equal(router.e_score_correction_bias, files[name])


def test_every_number_of_the_linears_is_kept(r1: tuple[Path, Path]) -> None:
    """Also of one whose outputs are no whole blocks, and behind another in one product."""
    model, files, seen = load_from(r1[0]).model, stored(r1[0]), 0
    for path, module in model.named_modules():
        if isinstance(module, BlockFp8Linear):
            seen += 1
            assert same(module.weight, files[f"{path}.weight"])
            assert torch.equal(module.scale, files[f"{path}.weight_scale_inv"])
    assert seen == 3 * 5 + 3 + 2 * 3


def test_biases_of_routers_stay_in_fp32(r1: tuple[Path, Path]) -> None:
    """In 16 bits they are rounded by more than lies between experts."""
    model, files = load_from(r1[0], dtype="bfloat16").model, stored(r1[0])
    for layer in (1, 2):
        bias = model.get_decoder().layers[layer].mlp.gate.e_score_correction_bias
        assert torch.equal(bias, files[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"])


def test_it_says_what_its_weights_say(r1: tuple[Path, Path]) -> None:
    """Within a bound: activations are rounded."""
    packed, plain = r1
    exact = scores(plain, "cpu")
    moved = float((scores(packed, "cpu") - exact).abs().mean() / exact.std())
    assert 0 < moved < MOVED, moved


@pytest.mark.usefixtures("plain_activations")
def test_but_for_rounding_it_says_what_generate_says(r1: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the numbers that linears and experts have."""
    oracle = unpacked(load_from(r1[0]).model)
    monkeypatch.setattr(Fp8Experts, "_rounded", lambda self, rows: rows.float())
    request = AddRequest(0, PROMPT, SamplingParams(max_tokens=8, temperature=0))
    outputs = run(make_engine(r1[0]), {0: request}, {0: 0})
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        found = oracle.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert outputs[0] == found[0, len(PROMPT) :].tolist()


def test_unpacked_it_says_what_generate_says(r1: tuple[Path, Path]) -> None:
    packed, plain = r1
    request = AddRequest(0, PROMPT, SamplingParams(max_tokens=8, temperature=0))
    outputs = run(make_engine(packed, quantization="none"), {0: request}, {0: 0})
    assert outputs[0] == generate(plain, PROMPT, 8)


@pytest.mark.slow
def test_two_ranks_have_whole_blocks_of_every_expert(r1: tuple[Path, Path]) -> None:
    packed, plain = r1
    exact = scores(plain, "cpu")
    with shared_engine(packed, max_batched_tokens=16, num_blocks=40) as engine:
        runner: Any = engine._runner
        experts = runner._runner.model.get_decoder().layers[1].mlp.module.experts
        assert experts.gate_up_proj.shape == (8, 256, 192) and experts.gate_up_scale.shape == (8, 2, 2)
        found = scores_by(engine)
    moved = float((found - exact).abs().mean() / exact.std())
    assert 0 < moved < MOVED_IN_PARTS, moved


def test_other_scales_are_found_anew_by_block(r1: tuple[Path, Path], tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    shutil.copytree(r1[0], packed)
    files = stored(packed)
    for name in [name for name in files if name.endswith("weight_scale_inv")]:
        rows = len(files[name.replace("_scale_inv", "")])
        files[name] = files[name].repeat_interleave(128, 0)[:rows]
    write(packed, files, weight_block_size=[1, 128])
    ours, theirs = (experts_of(load_from(directory).model, 1).unpacked(3) for directory in (packed, r1[0]))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda files: files.pop("model.layers.1.mlp.experts.3.up_proj.weight"),
            r"lacks .*experts\.3\.up_proj\.weight",
        ),
        (lambda files: files.pop("model.layers.1.mlp.experts.3.up_proj.weight_scale_inv"), "lacks .*weight_scale_inv"),
        (lambda files: files.pop("model.layers.1.mlp.experts.7.gate_proj.weight"), "has 7 experts where"),
        (lambda files: files.update({"model.layers.5.mlp.gate.weight": torch.ones(2)}), "has no place"),
    ],
)
def test_what_does_not_belong_together_is_refused(spoil: Any, said: str, r1: tuple[Path, Path], tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    shutil.copytree(r1[0], packed)
    files = stored(packed)
    spoil(files)
    write(packed, files)
    with pytest.raises(ModelLoadError, match=said):
        load_from(packed)
