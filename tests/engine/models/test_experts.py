"""The experts of mixtures: our products against transformers' own, on the CPU."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from engine.costs import routed_numbers
from engine.errors import ModelLoadError
from engine.kernels.reference import choose_experts
from engine.messages import AddRequest
from engine.models.experts import Fp8Experts, GroupedExperts, activation_of
from engine.models.fp8 import quantize_experts
from engine.models.fusion import Undo
from engine.models.mixtures import group_experts, rule_of
from engine.sampling_params import SamplingParams
from tests.engine.models.test_fp8 import IDS, dequantised, load_from, logits_of, moved
from tests.engine.models.test_fp8 import plain_activations as plain_activations
from tests.engine.test_oracle import make_engine, run
from tests.tiny_models import COMMON, FAMILIES, MIXTURES

TinyModelDir = Callable[[str], Path]
KNOWN = [*MIXTURES, "deepseek_v2", "deepseek_v3"]
FOREIGN: dict[str, dict[str, Any]] = {
    # With biases, and gates between the numbers they open.
    "gpt_oss": {"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
    # Without gates.
    "nemotron_h": {"model_type": "nemotron_h", "layers_block_type": ["moe"] * 3, "n_routed_experts": 4},
}


def build(options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**COMMON | options), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 1.5 * parameter.shape[-1] ** -0.5)
    return model


def experts_in(model: nn.Module) -> Iterator[Any]:
    return (module for name, module in model.named_modules() if name.endswith(".experts"))


def choices(num_tokens: int, num_experts: int, how: str) -> torch.Tensor:
    """Two experts for each token: any, or the same for all, so that most have no tokens."""
    if how == "the same":
        return torch.tensor([[num_experts - 1, 1]]).expand(num_tokens, 2)
    return torch.rand(num_tokens, num_experts).topk(2).indices


@pytest.mark.parametrize("family", KNOWN)
@torch.inference_mode()
def test_each_family_has_experts_of_the_known_form(family: str) -> None:
    model = build((FAMILIES | MIXTURES)[family])
    theirs = list(experts_in(model))
    undo: Undo = []
    assert group_experts(model, undo, uses_kernels=False) == len(theirs) >= 2
    ours = list(experts_in(model))
    for own, foreign in zip(ours, theirs, strict=True):
        assert isinstance(own, GroupedExperts) and own.down_proj is foreign.down_proj
        for tokens, how in ((1, "any"), (1, "the same"), (7, "any"), (7, "the same")):
            x, weights = torch.randn(tokens, 64), torch.rand(tokens, 2)
            index = choices(tokens, len(own.down_proj), how)
            torch.testing.assert_close(own(x, index, weights), foreign(x, index, weights), rtol=1e-5, atol=1e-5)
    for revert in reversed(undo):
        revert()
    assert list(experts_in(model)) == theirs


@pytest.mark.parametrize("family", KNOWN)
def test_a_token_costs_what_it_goes_through(family: str) -> None:
    """What limits count as experts are the experts of transformers' model, however its configuration names them."""
    model = build((FAMILIES | MIXTURES)[family])
    routed, share = routed_numbers(model.config.to_dict())
    assert routed == sum(weight.numel() for experts in experts_in(model) for weight in experts.parameters())
    assert share == 2 / len(next(experts_in(model)).down_proj)


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe", "dots1", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe"])
@torch.inference_mode()
def test_routers_are_known_by_their_rules(family: str) -> None:
    """Against transformers' own: the rule by which the kernel chooses, here as plain torch has it."""
    model = build((FAMILIES | MIXTURES)[family])
    routers = [module for module in model.modules() if rule_of(module) is not None]
    assert len(routers) == len(list(experts_in(model)))
    router: Any = routers[0]
    bias = getattr(router, "e_score_correction_bias", None)
    if bias is not None:
        bias.uniform_(-0.3, 0.3)
    logits, wanted, wanted_index = router(torch.randn(20, 64))
    index, weights = choose_experts(logits, bias, rule_of(router) or pytest.fail())
    order, wanted_order = index.argsort(-1), wanted_index.argsort(-1)
    assert torch.equal(index.gather(1, order), wanted_index.gather(1, wanted_order))
    torch.testing.assert_close(weights.gather(1, order), wanted.gather(1, wanted_order))


@pytest.mark.parametrize("family", FOREIGN)
def test_experts_of_other_forms_stay(family: str) -> None:
    model = build(FOREIGN[family])
    assert list(experts_in(model)) and group_experts(model, [], uses_kernels=False) == 0


def test_a_gate_of_its_own_is_another_form() -> None:
    experts = next(experts_in(build(MIXTURES["mixtral"])))
    assert activation_of(experts) == "silu"
    experts._apply_gate = lambda gate_up: gate_up
    assert activation_of(experts) is None


@torch.inference_mode()
def test_a_slice_of_each_expert_gives_a_part_of_the_sum() -> None:
    """As where ranks share the experts' intermediate numbers: nothing is read off a configuration."""
    experts = next(experts_in(build(MIXTURES["qwen3_moe"])))
    whole = GroupedExperts(experts.gate_up_proj, experts.down_proj, "silu", uses_kernels=False)
    gate, up = experts.gate_up_proj.chunk(2, 1)
    x, index, weights = torch.randn(5, 64), choices(5, 8, "any"), torch.rand(5, 2)
    total = torch.zeros(5, 64)
    for part in (slice(0, 20), slice(20, 32)):
        gate_up = nn.Parameter(torch.cat([gate[:, part], up[:, part]], 1))
        down = nn.Parameter(experts.down_proj[:, :, part].contiguous())
        total += GroupedExperts(gate_up, down, "silu", uses_kernels=False)(x, index, weights)
    torch.testing.assert_close(total, whole(x, index, weights))


def test_blocks_of_gate_and_up_are_apart() -> None:
    """Of 144 by 272 numbers: whole blocks, and what is left at the sides. Each block's largest number becomes 448."""
    torch.manual_seed(0)
    gate_up, down = torch.randn(2, 288, 272), torch.randn(2, 272, 144)
    gate_up[0, 143, 3] = 100.0  # the last of gate, so that up's first block must not know it
    experts = Fp8Experts.quantized(gate_up, down, "silu")
    assert experts.gate_up_scale.shape == (2, 4, 3) and experts.down_scale.shape == (2, 3, 2)
    assert float(experts.gate_up_scale[0, 1, 0]) == pytest.approx(100 / 448)
    assert float(experts.gate_up_scale[0, 2, 0]) < 5 / 448
    assert float(experts.gate_up_proj.float().abs().max()) == float(experts.down_proj.float().abs().max()) == 448
    for expert in range(2):
        unpacked, unpacked_down = experts.unpacked(expert)
        for found, meant, scales in ((unpacked, gate_up, 16.0), (unpacked_down, down, 16.0)):
            assert bool(((found - meant[expert]).abs() <= meant[expert].abs() / scales + 1e-3).all())


def unpacked(model: Any) -> Any:
    """transformers' model with plain linears and experts of the numbers that FP8 has."""
    for parent in list(model.modules()):
        child = getattr(parent, "experts", None)
        if isinstance(child, Fp8Experts):
            weights = [child.unpacked(expert) for expert in range(len(child.down_proj))]
            gate_up, down = (nn.Parameter(torch.stack(part)) for part in zip(*weights, strict=True))
            parent.experts = GroupedExperts(gate_up, down, child.activation, uses_kernels=False)
    return dequantised(model)


@pytest.mark.usefixtures("plain_activations")
@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_mixtures_are_served_in_fp8(family: str, tiny_model_dir: TinyModelDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy, against `generate` of the same numbers; rounded activations move the logits a little."""
    directory = tiny_model_dir(family)
    before, loaded = load_from(directory), load_from(directory, quantization="fp8")
    layers = loaded.model.get_decoder().layers
    kinds = [type(getattr(layer.mlp, "experts", None)) for layer in layers]
    assert kinds.count(Fp8Experts) == (2 if family == "qwen3_moe" else 1) and kinds[-1] is not Fp8Experts
    assert loaded.weights_bytes < before.weights_bytes * 0.75
    assert 0.001 < moved(logits_of(loaded.model), logits_of(before.model)) < 0.3
    monkeypatch.setattr(Fp8Experts, "_rounded", lambda self, rows: rows.float())
    oracle, prompt = unpacked(loaded.model), IDS[0, :17].tolist()
    request = AddRequest(0, prompt, SamplingParams(max_tokens=8, temperature=0))
    outputs = run(make_engine(directory, quantization="fp8"), {0: request}, {0: 0})
    with torch.inference_mode():
        ids = torch.tensor([prompt])
        found = oracle.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert outputs[0] == found[0, len(prompt) :].tolist()


def test_experts_in_fp8_use_kernels_where_attention_does() -> None:
    """Without a GPU only then; where they are undone, plain torch serves again."""
    model = build(MIXTURES["mixtral"])
    assert quantize_experts(model.get_decoder()) == 2
    undo: Undo = []
    assert group_experts(model, undo, uses_kernels=False) == 1  # the last layer's, which are not in FP8
    assert group_experts(model, undo, uses_kernels=True) == 2
    packed = [experts for experts in experts_in(model) if isinstance(experts, Fp8Experts)]
    assert all(experts.uses_kernels for experts in packed)
    for revert in reversed(undo):
        revert()
    assert not any(experts.uses_kernels for experts in packed)


def test_experts_of_other_forms_are_not_put_into_fp8() -> None:
    with pytest.raises(ModelLoadError, match=r"its experts \(GptOssExperts\) are of a form"):
        quantize_experts(build(FOREIGN["gpt_oss"]).get_decoder())
