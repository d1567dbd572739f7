"""Attention on latents: the model that transformers has, with one KV head that every backend knows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from engine.engine import Engine
from engine.execution.model_runner import ModelRunner
from engine.messages import AddRequest
from engine.models import latent_attention
from engine.models.fusion import Undo
from engine.models.latent_attention import LatentExpansion, replace_attention
from engine.sampling_params import SamplingParams
from engine.sizing.cache import bytes_per_token
from engine.sizing.formulas import shape_of
from engine.weights.random_model import shipped_config
from tests.engine.models.test_fp8 import write_checkpoint
from tests.engine.test_oracle import generate, make_engine, run
from tests.gpu.fp8_checks import scores
from tests.tiny_models import COMMON, FAMILIES, VOCAB_SIZE

TinyModelDir = Callable[[str], Path]
RANKS = {"kv_lora_rank": 20, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 16, "num_key_value_heads": 4}
EXPERTS = {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
KINDS: dict[str, dict[str, Any]] = {
    "deepseek_v2": FAMILIES["deepseek_v2"],
    "deepseek_v2, queries from few numbers": FAMILIES["deepseek_v2"] | {"q_lora_rank": 24},
    "deepseek_v3": FAMILIES["deepseek_v3"],
    "deepseek_v3, queries as they are": FAMILIES["deepseek_v3"] | {"q_lora_rank": None, "rope_interleave": False},
    "deepseek_v3, with yarn": FAMILIES["deepseek_v3"]
    | {
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 128,
        }
    },
    "youtu": RANKS | {"model_type": "youtu", "q_lora_rank": 24},
    "glm4_moe_lite": RANKS | EXPERTS | {"model_type": "glm4_moe_lite", "q_lora_rank": 24},
    "minicpm3": RANKS | {"model_type": "minicpm3", "q_lora_rank": 24},
}  # fmt: skip


def build(options: dict[str, Any]) -> Any:
    config = AutoConfig.for_model(**COMMON | options)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 1.5 * parameter.shape[-1] ** -0.5)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return torch.as_tensor(model(torch.arange(3, 30)[None]).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_says_the_same_on_latents(kind: str) -> None:
    """By transformers' own attention, with and without its cache, and again as before when it is undone."""
    model = build(KINDS[kind])
    before, undo = logits(model), Undo()
    prompt, numbers = torch.arange(40, 60)[None], sum(parameter.numel() for parameter in model.parameters())
    wanted = model.generate(prompt, max_new_tokens=8, do_sample=False)
    places = {module.kv_b_proj.weight.data_ptr() for module in model.modules() if hasattr(module, "kv_b_proj")}
    assert replace_attention(model, undo) == model.config.num_hidden_layers
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.generate(prompt, max_new_tokens=8, do_sample=False), wanted)
    expansions = [module for module in model.modules() if isinstance(module, LatentExpansion)]
    assert {expansion.weight.data_ptr() for expansion in expansions} == places, "the weight is there twice"
    assert sum(parameter.numel() for parameter in model.parameters()) == numbers
    for revert in reversed(undo):
        revert()
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("kind", ["deepseek_v3, with yarn", "glm4_moe_lite", "minicpm3", "youtu"])
def test_models_that_share_the_attention_are_served(kind: str, tmp_path: Path) -> None:
    build(KINDS[kind]).save_pretrained(tmp_path)
    engine = make_engine(tmp_path, max_batched_tokens=16, num_blocks=30, context=60)
    assert all(cache.is_latent for cache in runner_of(engine).caches.values())
    prompts = {number: [3 + (7 * at + number) % 300 for at in range(length)] for number, length in enumerate((3, 21))}
    params = SamplingParams(max_tokens=12, temperature=0)
    outputs = run(
        engine, {number: AddRequest(number, prompt, params) for number, prompt in prompts.items()}, {0: 0, 1: 2}
    )
    assert outputs == {number: generate(tmp_path, prompt, 12) for number, prompt in prompts.items()}


def runner_of(engine: Engine) -> ModelRunner:
    assert isinstance(engine._runner, ModelRunner)
    return engine._runner


def test_the_cache_holds_latents_and_nothing_beside_them(tiny_model_dir: TinyModelDir) -> None:
    runner = runner_of(make_engine(tiny_model_dir("deepseek_v3"), num_blocks=24, context=90))
    sizes = FAMILIES["deepseek_v3"]
    width = sizes["kv_lora_rank"] + sizes["qk_rope_head_dim"]
    assert runner.kv_bytes == 24 * 4 * COMMON["num_hidden_layers"] * width * 4
    for cache in runner.caches.values():
        assert cache.k.shape[::2] == (1, width) and len(cache.parts) == 1
        assert cache.v.untyped_storage().data_ptr() == cache.k.untyped_storage().data_ptr()
        assert cache.k.untyped_storage().nbytes() == (24 + 1) * 4 * width * 4


def test_a_token_of_deepseek_r1_takes_70272_bytes() -> None:
    shape = shape_of(shipped_config("DeepSeek-R1") or {})
    assert shape is not None
    assert bytes_per_token(shape.cache, 2) == 61 * (512 + 64) * 2 == 70_272


@pytest.mark.parametrize("chunk", [1, 4, 7])
def test_chunks_of_any_size_and_hits_of_prefixes(chunk: int, tiny_model_dir: TinyModelDir) -> None:
    directory = tiny_model_dir("deepseek_v3")
    engine = make_engine(directory, max_batched_tokens=chunk, max_num_seqs=1)
    shared = [(11 * at) % (VOCAB_SIZE - 3) + 3 for at in range(19)]
    for number, prompt in enumerate((shared, [*shared, 7, 8, 9], shared[:17])):
        request = AddRequest(number, prompt, SamplingParams(max_tokens=9, temperature=0))
        assert run(engine, {number: request}, {number: 0})[number] == generate(directory, prompt, 9)
    assert engine.stats().cached_tokens > 0


@pytest.mark.parametrize(
    "options",
    [{"dtype": "bfloat16"}, {"kv_dtype": "fp8", "attention": "reference"}, {"dtype": "bfloat16", "attention": "sdpa"}],
    ids=str,
)
def test_fewer_bits_move_the_scores_a_little(options: dict[str, str], tiny_model_dir: TinyModelDir) -> None:
    before = scores(tiny_model_dir("deepseek_v2"), "cpu")
    moved = (scores(tiny_model_dir("deepseek_v2"), "cpu", **options) - before).abs().mean() / before.std()
    assert 0 < float(moved) < 0.1


def test_weights_in_fp8_are_unpacked_and_those_to_come_are_not_packed(tmp_path: Path) -> None:
    options = KINDS["youtu"] | {"kv_lora_rank": 32, "qk_nope_head_dim": 16, "v_head_dim": 16, "q_lora_rank": 32}
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    build(options).save_pretrained(plain)
    meant = write_checkpoint(plain, packed, "compressed-tensors, by channel")
    before = scores(plain, "cpu")
    for directory, settings in ((plain, {"quantization": "fp8"}), (packed, {})):
        moved = (scores(directory, "cpu", **settings) - before).abs().mean() / before.std()
        assert 0 < float(moved) < 0.25
        runner: Any = runner_of(make_engine(directory, **settings))
        assert runner.loaded.fp8_linears and all(cache.is_latent for cache in runner.caches.values())
        wanted = load_file(plain / "model.safetensors") if settings else meant
        name = "model.layers.0.self_attn.kv_b_proj.weight"
        found = runner.model.get_submodule(name.removesuffix(".weight")).weight
        torch.testing.assert_close(found.flatten(0, 1), wanted[name])


def test_a_model_that_would_say_something_else_keeps_every_head(
    tiny_model_dir: TinyModelDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(latents: torch.Tensor, turned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat((latents, turned * 1.01), dim=-1), latents

    monkeypatch.setattr(latent_attention, "_joined", wrong)
    directory = tiny_model_dir("deepseek_v3")
    engine = make_engine(directory)
    assert any("keys and values of every head" in note for note in runner_of(engine).notes)
    assert {cache.k.shape[0] for cache in runner_of(engine).caches.values()} == {4}
    prompt = [5, 6, 7, 8]
    request = AddRequest(1, prompt, SamplingParams(max_tokens=5, temperature=0))
    assert run(engine, {1: request}, {1: 0})[1] == generate(directory, prompt, 5)
