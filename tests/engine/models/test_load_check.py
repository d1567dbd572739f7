"""Models that would give wrong answers on this engine do not load; those it knows do (see test_oracle)."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.attention.sdpa import Run, plan_run
from engine.build import build_engine
from engine.config import EngineConfig
from engine.device.forward_batch import ForwardBatch
from engine.device.kv_cache import LayerCache
from engine.errors import ModelLoadError
from engine.models.fusion import apply_checked
from engine.models.load_check import CheckBatches, check_batching, moved
from tests.tiny_models import COMMON

CPU = torch.device("cpu")
REFUSED = {
    "a convolution between tokens": {"model_type": "lfm2", "full_attn_idxs": [1], "block_auto_adjust_ff_dim": False},
    "a recurrent state beside attention": {
        "model_type": "falcon_h1",
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_n_groups": 1,
        "mamba_d_state": 16,
    },
    "sinks in the softmax": {
        "model_type": "gpt_oss",
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
    },
    "two attentions a layer": {"model_type": "diffllama"},
    "an indexer beside its attention": {
        "model_type": "deepseek_v32",
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "first_k_dense_replace": 2,
    },
}


@pytest.mark.parametrize("options", REFUSED.values(), ids=REFUSED)
def test_what_would_answer_wrongly_is_refused(options: dict[str, object], tmp_path: Path) -> None:
    config = AutoConfig.for_model(**(COMMON | options))
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="does not run on this engine"):
        build_engine(EngineConfig(name="t", source=str(tmp_path), dtype="float32", threads=1), lambda *_: None)


def test_heads_that_do_not_belong_together_are_named() -> None:
    """The default of qwen2 is 32 KV heads; that such a model depends on its batches is true, and no help."""
    source = "random://qwen2?hidden_size=64&num_hidden_layers=1&vocab_size=300&num_attention_heads=4"
    with pytest.raises(ModelLoadError, match="num_key_value_heads: 32 does not divide the model's 4 att") as refused:
        build_engine(EngineConfig(name="t", source=source, dtype="float32", threads=1), lambda *_: None)
    assert "default of its type, here qwen2" in (refused.value.hint or "")


def test_a_state_that_crosses_sequences_is_found_without_its_name() -> None:
    """A made-up model whose logits depend on the token before in the batch, whoever's it is."""
    table = torch.randn(50, 50, generator=torch.Generator().manual_seed(0))

    def own(batch: ForwardBatch) -> torch.Tensor:
        return table[batch.input_ids][batch.logits_index]

    def leaking(batch: ForwardBatch) -> torch.Tensor:
        return (table[batch.input_ids] + table[batch.input_ids.roll(1)])[batch.logits_index]

    batches = CheckBatches(50, 16, CPU)
    check_batching("Sound", own(batches.whole)[-1], own(batches.last)[-1])
    with pytest.raises(ModelLoadError, match="how requests are batched"):
        check_batching("Leaking", leaking(batches.whole)[-1], leaking(batches.last)[-1])


def test_what_all_logits_have_in_common_is_no_change() -> None:
    """8-bit weights moved all logits of SmolLM2 by a third of their spread on one processor, and it was refused."""
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    assert moved(logits + torch.tensor([[1.0], [-2.0], [0.0]]), logits) < 1e-6
    assert moved(logits.roll(1, dims=0), logits) > 0.5


def test_a_change_that_breaks_the_model_is_undone() -> None:
    state = {"value": 1.0}

    def check() -> torch.Tensor:
        if state["value"] > 2:
            raise AttributeError("no such weight")
        return torch.arange(5) * state["value"]

    before = check()

    def change_to(value: float) -> int | None:
        def change(undo: list) -> int:  # type: ignore[type-arg]
            undo.append(lambda: state.update(value=1.0))
            state["value"] = value
            return 1

        count, now = apply_checked("it", change, before, check, tolerance=0.1)
        assert torch.equal(now, check())
        return count

    assert change_to(3.0) is None and state["value"] == 1.0
    assert change_to(2.0) is None and state["value"] == 1.0
    assert change_to(1.0) == 1


def test_layers_with_different_groups_do_not_share_masks() -> None:
    run = Run(slice(0, 20), torch.zeros(2, dtype=torch.int64), 16, 20)
    queries = torch.zeros(4, 20, 8)
    assert run.mask(0, queries, 2, None).shape == (40, 20)
    assert run.mask(0, queries, 4, None).shape == (80, 20)
    assert run.mask(0, queries[:, :10], 2, None).shape == (20, 10)


def test_keys_are_copied_only_where_their_blocks_lie_apart() -> None:
    separate = LayerCache(torch.randn(2, 6 * 16, 8), torch.randn(2, 6 * 16, 4))
    latents = LayerCache.of_latents(separate.k, 4)
    for (blocks, first), cache in product((([2, 3, 4], 2), ([4, 2, 3], None)), (separate, latents)):
        batch = SimpleNamespace(context_lens=[40], query_lens=[5], block_tables=torch.tensor([blocks]))
        slots = [block * 16 + at for block in blocks for at in range(16)][:40]
        gathered = plan_run(batch, 0, 0, 16).gather(cache)  # type: ignore[arg-type]
        for found, kept in zip(gathered, (cache.k, cache.v), strict=True):
            assert torch.equal(found, kept[:, slots])
            in_place = found.untyped_storage().data_ptr() == kept.untyped_storage().data_ptr()
            assert in_place == (first is not None)
