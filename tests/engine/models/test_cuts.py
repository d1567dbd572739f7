"""What each rank has of a model: together all of it, each number where it belongs, as transformers itself cuts it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoConfig

from engine.models.building import draw_parts
from engine.models.cuts import Cut, Cutter
from engine.models.reading import Reader, is_left_out, renaming_for
from engine.sizing.split import SPLIT_KINDS, split_of
from tests.tiny_models import COMMON, FAMILIES, VISION_FAMILIES, auto_class

CPU = torch.device("cpu")
KINDS: dict[str, dict[str, Any]] = {
    family: COMMON | options for family, options in FAMILIES.items() if options["model_type"] in SPLIT_KINDS
} | {family: VISION_FAMILIES[family] for family in ("qwen2_5_vl", "mllama")}


def skeleton(family: str) -> Any:
    config = AutoConfig.for_model(**KINDS[family])
    with torch.device("meta"):
        return auto_class(config).from_config(config)


def cutters(model: Any, ranks: int) -> list[Cutter]:
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    split = split_of(decoder.config.to_dict(), ranks)
    return [Cutter(split, rank, prefix) for rank in range(ranks)]


def indices(cut: Cut | None, size: int) -> list[int]:
    return list(range(size)) if cut is None else [i for start, stop in cut.ranges for i in range(start, stop)]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("family", KINDS)
def test_together_the_ranks_have_all_of_a_model(family: str, ranks: int) -> None:
    model = skeleton(family)
    number_cut = 0
    for path, parameter in model.named_parameters():
        parts = [cutter.cut(path, parameter.shape) for cutter in cutters(model, ranks)]
        if all(part is None for part in parts):
            continue
        number_cut += 1
        if any(part is not None and not part.is_shared for part in parts):
            assert parts[0] is None, "rank 0 adds a bias of what is summed up"
            continue
        dim = parts[0].dim  # type: ignore[union-attr]
        rows = [indices(part, parameter.shape[dim]) for part in parts]
        assert sorted({row for part in rows for row in part}) == list(range(parameter.shape[dim])), path
        shapes = {part.shape_of(parameter.shape) for part in parts if part is not None}
        assert len(shapes) == 1, f"{path}: ranks compute with parts of one shape"
        if not path.endswith(("k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias", "qkv_proj.weight")):
            assert sum(map(len, rows)) == parameter.shape[dim], f"{path} is in two places"
    assert number_cut >= 4 * model.get_decoder().config.num_hidden_layers


def test_a_kv_head_is_with_the_queries_that_ask_it() -> None:
    """Four query heads and two KV heads of 16 on four ranks: query heads 0 and 1 ask KV head 0."""
    model = skeleton("mistral")
    for rank, cutter in enumerate(cutters(model, 4)):
        keys = cutter.cut("model.layers.0.self_attn.k_proj.weight", torch.Size((32, 64)))
        assert keys is not None and keys.ranges == ((rank // 2 * 16, rank // 2 * 16 + 16),)


def test_transformers_cuts_in_the_same_directions() -> None:
    directions = {"colwise": 0, "rowwise": 1, "colwise_gather_output": 0, "rowwise_split_input": 1}
    for family in KINDS:
        model = skeleton(family)
        decoder = model.get_decoder()
        (cutter, _) = cutters(model, 2)
        prefix = next(name for name, module in model.named_modules() if module is decoder)
        for pattern, how in (getattr(type(decoder.config), "base_model_tp_plan", None) or {}).items():
            if how not in directions:
                continue
            for name, module in decoder.named_modules():
                if name.replace(".1.", ".*.") == pattern and type(module) is torch.nn.Linear:
                    cut = cutter.cut(f"{prefix}.{name}.weight", module.weight.shape)
                    assert cut is not None and cut.dim == directions[how], f"{family}: {name}"


@given(st.integers(1, 40), st.integers(1, 7))
def test_vocabularies_need_not_come_out_even(tokens: int, ranks: int) -> None:
    split = split_of(
        KINDS["llama"] | {"num_attention_heads": 420, "num_key_value_heads": 420, "intermediate_size": 420}, ranks
    )
    weight = torch.arange(tokens, dtype=torch.float32)[:, None] + 1
    parts = []
    for rank in range(ranks):
        cut = Cutter(split, rank, "model").cut("lm_head.weight", weight.shape)
        assert cut is not None
        parts.append(cut.take(weight))
    whole = torch.cat(parts)
    assert len({len(part) for part in parts}) == 1
    assert torch.equal(whole[:tokens], weight) and not whole[tokens:].any()


def test_a_rank_reads_its_part_and_no_more(tiny_model_dir: Callable[[str], Path]) -> None:
    model = skeleton("llama")
    files = list(tiny_model_dir("llama").glob("*.safetensors"))
    read = []
    for cutter in cutters(model, 2):
        reader = Reader(files, CPU, renaming_for(model))
        norms = 0
        for path, parameter in model.named_parameters():
            part = reader.take(path, cutter.cut(path, parameter.shape))
            norms += part.nbytes if parameter.dim() == 1 else 0
        assert not reader.unused()
        read.append(reader.num_bytes - norms)
    whole = sum(parameter.numel() * 4 for parameter in model.parameters() if parameter.dim() > 1)
    assert read == [whole // 2, whole // 2]


def test_experts_that_are_stored_one_by_one_are_read_one_by_one(tmp_path: Path) -> None:
    model = skeleton("deepseek_v3")
    path = "model.layers.1.mlp.experts"
    experts = {
        f"{path}.{number}.{name}.weight": torch.randn(*((64, 32) if name == "down_proj" else (32, 64)))
        for number in range(8)
        for name in ("gate_proj", "up_proj", "down_proj")
    }
    save_file(experts, tmp_path / "model.safetensors")
    reader = Reader([tmp_path / "model.safetensors"], CPU, renaming_for(model))
    assert reader.experts(f"{path}.down_proj") == [[f"{path}.{number}.down_proj.weight"] for number in range(8)]
    assert reader.experts(f"{path}.gate_up_proj")[7] == [f"{path}.7.gate_proj.weight", f"{path}.7.up_proj.weight"]
    assert reader.experts("model.layers.0.mlp.down_proj") == []


def test_layers_that_predict_further_tokens_are_left_out_by_name() -> None:
    model = skeleton("deepseek_v3")
    model.config.num_nextn_predict_layers = 1
    assert is_left_out(model, "model.layers.3.eh_proj.weight") and is_left_out(model, "model.layers.61.enorm.weight")
    assert not is_left_out(model, "model.layers.2.enorm.weight") and not is_left_out(model, "model.layers.4.x.weight")


def test_a_ranks_share_counts_what_all_have() -> None:
    model = skeleton("llama")
    norms = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 1)
    whole = sum(parameter.numel() for parameter in model.parameters())
    for cutter in cutters(model, 2):
        assert cutter.share(model) * whole == pytest.approx((whole + norms) / 2)


@pytest.mark.parametrize("family", KINDS)
def test_ranks_draw_their_parts_of_the_model_that_one_process_draws(family: str) -> None:
    models = [skeleton(family) for _ in range(3)]
    for model, cutter in zip(models, [None, *cutters(models[0], 2)], strict=True):
        draw_parts(model, 7, CPU, cutter)
    whole, *parts = (dict(model.named_parameters()) for model in models)
    shapes = {path: parameter.shape for path, parameter in skeleton(family).named_parameters(remove_duplicate=False)}
    for part, cutter in zip(parts, cutters(models[0], 2), strict=True):
        for path, parameter in part.items():
            cut = cutter.cut(path, shapes[path])
            assert torch.equal(parameter, whole[path] if cut is None else cut.take(whole[path].data)), path
    assert all(parameter.isfinite().all() for parameter in whole.values())
