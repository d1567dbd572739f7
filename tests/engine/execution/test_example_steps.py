"""Steps of no request, which a load runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.device.forward_batch import ForwardBatch
from engine.execution.example_steps import largest_step, plain_step
from engine.execution.model_runner import ModelRunner
from engine.sizing.steps import Limits, bucket_sizes, step_forms, step_sizes
from tests.engine.test_oracle import make_engine


def test_the_largest_step_has_all_tokens_and_all_sequences() -> None:
    rows = largest_step(max_num_seqs=8, max_batched_tokens=100, block_size=4)
    assert len(rows) == 8 and sum(row.num_tokens for row in rows) == 96
    assert all(row.samples for row in rows) and len({row.sequence.slot for row in rows}) == 8
    assert len(largest_step(max_num_seqs=8, max_batched_tokens=3, block_size=4)) == 3


@pytest.mark.parametrize(
    ("tokens", "max_context", "lengths"),
    [(1, 100, [1]), (2, 100, [1, 1]), (64, 100, [1, 63]), (64, 63, [1, 63]), (64, 30, [1, 30, 30, 3])],
)
def test_a_plain_step_has_a_row_that_decodes_and_prompts_that_a_sequence_could_have(
    tokens: int, max_context: int, lengths: list[int]
) -> None:
    rows = plain_step(tokens, max_context=max_context, block_size=16)
    assert [row.num_tokens for row in rows] == lengths and all(row.samples for row in rows)
    assert [len(row.sequence.block_table) for row in rows] == [-(-length // 16) for length in lengths]


def test_the_forms_of_steps() -> None:
    limits = Limits(6, 100, 100, 8)
    forms = step_forms(limits, 1000, pads=True)
    assert forms.decoding == tuple(bucket_sizes(6)) and forms.mixed == tuple(step_sizes(6, 100)) != ()
    assert step_forms(limits, 30, pads=True).mixed == (), "padding is a row that a sequence could have"
    assert forms.plain == (1, 2, 4, 8, 16, 32, 64, 100)
    assert step_forms(limits, 10, pads=True).plain == (1, 2, 4, 8, 16, 32, 60), "all there can be"
    assert step_forms(Limits(6, 64, 64, 8), 1000, pads=False) == type(forms)((), (), forms.plain[:-1])


def test_a_load_takes_every_plain_step_but_what_lacks_memory(
    tiny_model_dir: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runner = make_engine(tiny_model_dir("llama"), max_batched_tokens=48)._runner
    assert isinstance(runner, ModelRunner)
    taken: list[int] = []
    forward = runner._forward

    def noted(batch: ForwardBatch) -> torch.Tensor:
        taken.append(len(batch.input_ids))
        if len(batch.input_ids) == 48:
            raise torch.OutOfMemoryError
        return forward(batch)

    monkeypatch.setattr(runner, "_forward", noted)
    monkeypatch.setattr(runner, "sampler", type("NoSampler", (), {"warm_up": lambda *_: None})())
    runner.warm_up()
    assert taken == [1, 2, 4, 8, 16, 32, 48]
    assert "no memory for a step of 48 tokens" in caplog.text
    for cache in runner.caches.values():  # only the null block was written
        assert not cache.k[:, 4:].any() and not cache.v[:, 4:].any()
    runner._ranks = object()  # type: ignore[assignment]
    with pytest.raises(torch.OutOfMemoryError):
        runner.warm_up()
