"""Context, pool, queue and memory: what happens where they end, over a fake model."""

import pytest
import torch

from tests.engine.fake_runner import FakeFlight, make_engine
from tests.engine.test_engine import expected, request, run, step, tokens


def test_a_prompt_of_context_less_one_gets_one_token() -> None:
    engine, _, runner = make_engine(context=20)
    engine.add(request(1, [1] * 19, 100))
    engine.add(request(2, [1] * 20, 1))
    outputs = run(engine, runner)
    assert tokens(outputs[1, 0]) == expected([1] * 19, 1)
    assert outputs[1, 0][-1].finish_reason == "length"
    error = outputs[2, 0][0]
    assert error.error_param == "messages" and "20 tokens; this model's context is 20 tokens" in str(error.error)


@pytest.mark.parametrize("block_size", [1, 3, 4, 16, 64])
def test_the_context_ends_an_answer_that_asks_for_more(block_size: int) -> None:
    engine, _, runner = make_engine(context=33, block_size=block_size, num_blocks=-(-33 // block_size))
    engine.add(request(1, [1, 0, 2], 2**31 - 1))
    outputs = run(engine, runner)[1, 0]
    assert tokens(outputs) == expected([1, 0, 2], 10_000, max_len=33)
    assert outputs[-1].finish_reason == "length" and len(tokens(outputs)) == 30


@pytest.mark.parametrize("block_size", [1, 4, 5])
def test_a_pool_smaller_than_the_context_is_the_limit(block_size: int) -> None:
    """A sequence may grow by one token past what the blocks hold, because the last is never computed."""
    engine, _, runner = make_engine(context=100, block_size=block_size, num_blocks=20 // block_size)
    assert engine.context == 21
    engine.add(request(1, [1] * 4, 1000))
    engine.add(request(2, [1] * 20, 1000))
    engine.add(request(3, [1] * 21, 1))
    outputs = run(engine, runner)
    assert tokens(outputs[1, 0]) == expected([1] * 4, 17)
    assert tokens(outputs[2, 0]) == expected([1] * 20, 1)
    assert outputs[1, 0][-1].finish_reason == outputs[2, 0][-1].finish_reason == "length"
    assert "context is 21 tokens" in str(outputs[3, 0][0].error)


def test_a_full_queue_refuses_and_counts_choices() -> None:
    engine, _, runner = make_engine(max_queued=3)
    engine.add(request(1, [0], n=2))
    engine.add(request(2, [1], n=2))
    engine.add(request(3, [2]))
    assert engine.stats().num_waiting == 3
    outputs = run(engine, runner)
    assert [outputs[2, i][0].finish_reason for i in (0, 1)] == ["error", "error"]
    assert engine.stats().failed == 2
    for key in ((1, 0), (1, 1), (3, 0)):
        assert outputs[key][-1].finish_reason == "length"


def test_a_step_out_of_memory_is_tried_again_with_fewer_tokens() -> None:
    engine, scheduler, runner = make_engine(max_batched_tokens=64, max_num_seqs=4)
    prompt = [1, 2, 0] * 10
    engine.add(request(1, prompt, 4))
    runner.errors += [torch.OutOfMemoryError("CUDA out of memory")] * 3
    assert tokens(run(engine, runner)[1, 0]) == expected(prompt, 4)
    assert scheduler.max_batched_tokens == 8


def test_a_step_that_cannot_be_smaller_fails_its_rows() -> None:
    engine, scheduler, runner = make_engine(max_batched_tokens=8, max_num_seqs=4)
    engine.add(request(1, [1] * 9))
    runner.errors += [torch.OutOfMemoryError("CUDA out of memory")] * 2
    assert run(engine, runner)[1, 0][-1].finish_reason == "error"
    engine.add(request(2, [1] * 9))
    assert tokens(run(engine, runner)[2, 0]) == expected([1] * 9, 6)
    assert scheduler.max_batched_tokens == 4


def test_sampling_out_of_memory_fails_its_rows_and_makes_steps_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, scheduler, runner = make_engine(max_batched_tokens=64, max_num_seqs=4)

    def lack(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine.add(request(1, [1] * 9))
    with monkeypatch.context() as patch:
        patch.setattr(FakeFlight, "sample", lack)
        assert run(engine, runner)[1, 0][-1].finish_reason == "error"
    assert scheduler.max_batched_tokens == 32
    engine.add(request(2, [1] * 9))
    assert tokens(run(engine, runner)[2, 0]) == expected([1] * 9, 6)


def test_shrinking_ends_what_can_go_no_further() -> None:
    """16 tokens are left: the first has more already, the second may reach 17, the third's prompt never fits."""
    engine, _, runner = make_engine(num_blocks=12, max_num_seqs=2)
    engine.add(request(1, [1] * 14, 20))
    engine.add(request(2, [2] * 4, 20))
    engine.add(request(3, [0] * 20, 5))
    said = {1: [], 2: []}  # type: dict[int, list[int]]
    for _ in range(4):
        for output in step(engine):
            said[output.request_id] += output.token_ids
    assert engine.shrink(8) == 4 and engine.context == 17
    outputs = run(engine, runner)
    (end,) = outputs[1, 0]
    assert (end.token_ids, end.finish_reason, len(said[1])) == ([], "length", 4)
    assert said[2] + tokens(outputs[2, 0]) == expected([2] * 4, 20, max_len=17)
    assert outputs[2, 0][-1].finish_reason == "length"
    assert outputs[3, 0][0].error == "the prompt has 20 tokens; memory ran short, and the context is 17 tokens now"
    assert engine.shrink(100) == 1
    engine.add(request(4, [1] * 4, 9))
    assert tokens(run(engine, runner)[4, 0]) == expected([1] * 4, 1)


def test_shrinking_preempts_the_newest_when_owned_blocks_must_go() -> None:
    engine, scheduler, runner = make_engine(num_blocks=12)
    for i in range(3):
        engine.add(request(i, [i] * 8, 6))
    said = {i: [] for i in range(3)}  # type: dict[int, list[int]]
    for output in step(engine):
        said[output.request_id] += output.token_ids
    engine.shrink(8)
    scheduler.check()
    assert [s.request_id for s in scheduler.running] == [0, 1]
    for (i, _), outputs in run(engine, runner).items():
        said[i] += tokens(outputs)
    assert said == {i: expected([i] * 8, 6) for i in range(3)}


def test_what_can_never_be_scheduled_fails_in_place_of_spinning(caplog: pytest.LogCaptureFixture) -> None:
    """Blocks that vanish behind the scheduler's back stand for any mistake that leaves the queue's head stuck."""
    engine, scheduler, runner = make_engine(num_blocks=6)
    engine.add(request(1, [1] * 9, 10))
    engine.add(request(2, [2], 2))
    engine.step()
    scheduler.blocks.shrink(3)
    outputs = run(engine, runner)
    assert outputs[1, 0][-1].error == "internal error while scheduling this request"
    assert "nothing can be scheduled" in caplog.text
    assert outputs[2, 0][-1].finish_reason == "length"
