"""How steps are packed: what a recycled slot must not keep."""

import numpy as np
import pytest
import torch

from engine.device import forward_batch
from engine.device.forward_batch import BatchBuilder
from engine.sampling_params import SamplingParams
from engine.scheduling.block_manager import NULL_BLOCK
from engine.scheduling.scheduled import Scheduled
from engine.scheduling.sequence import Sequence


def made(prompt: list[int], blocks: list[int]) -> Sequence:
    params = SamplingParams(max_tokens=9)
    sequence = Sequence(request_id=1, prompt_token_ids=prompt, params=params, seed=0, max_len=len(prompt) + 9)
    sequence.slot = 0
    sequence.block_table = blocks
    return sequence


def test_a_request_id_that_comes_again_in_the_same_slot_brings_its_own_blocks() -> None:
    builder = BatchBuilder(max_num_seqs=2, max_blocks=8, block_size=2, device=torch.device("cpu"))
    builder.build([Scheduled(made([1] * 6, [1, 2, 3]), 6)])
    batch = builder.build([Scheduled(made([2] * 3, [4, 5]), 3)])
    assert batch.block_tables.tolist() == [[4, 5]]
    assert batch.slot_mapping.tolist() == [8, 9, 10]


def test_tables_end_with_the_null_block_whoever_had_the_slot_before() -> None:
    builder = BatchBuilder(max_num_seqs=2, max_blocks=8, block_size=2, device=torch.device("cpu"))
    former, long = made([1] * 6, [1, 2, 3]), made([2] * 6, [5, 6, 7])
    long.slot = 1
    builder.build([Scheduled(former, 6)])
    batch = builder.build([Scheduled(made([2], [4]), 1), Scheduled(long, 6)])
    assert batch.block_tables.tolist() == [[4, NULL_BLOCK, NULL_BLOCK], [5, 6, 7]]


def test_a_table_that_did_not_reach_the_device_is_copied_again(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = BatchBuilder(max_num_seqs=2, max_blocks=8, block_size=2, device=torch.device("cpu"))
    builder.tables = torch.zeros_like(builder.tables)  # a device's own
    builder._device = torch.device("meta")

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError

    def copy(arrays: list[np.ndarray], _: torch.device) -> list[torch.Tensor]:
        return [torch.from_numpy(array) for array in arrays]

    row = Scheduled(made([1] * 6, [1, 2, 3]), 6)
    monkeypatch.setattr(forward_batch, "upload", fail)
    with pytest.raises(torch.OutOfMemoryError):
        builder.pack([row])
    monkeypatch.setattr(forward_batch, "upload", copy)
    builder.pack([row])
    assert builder.tables[0, :3].tolist() == [1, 2, 3]


def test_a_row_that_is_scored_but_not_sampled_keeps_a_step_from_being_a_decoding_one() -> None:
    """Logits of rows that sample come first: here those of the second row, and a recorded step cannot turn them."""
    builder = BatchBuilder(max_num_seqs=2, max_blocks=8, block_size=2, device=torch.device("cpu"))
    scored, other = made([1] * 6, [1, 2, 3]), made([2], [4])
    scored.params = SamplingParams(max_tokens=9, prompt_logprobs=0)
    scored.num_computed_tokens, other.slot = 3, 1
    host = builder.pack([Scheduled(scored, 1), Scheduled(other, 1)])
    assert host.logits_index.tolist() == [1, 0]
    assert not host.only_decodes
    assert builder.pack([Scheduled(other, 1)]).only_decodes
