"""The step loop over a fake model: its error boundary, its limits, its counters."""

import pytest
import torch

from engine.engine import Engine
from engine.messages import AddRequest, SequenceOutput
from engine.sampling_params import SamplingParams
from tests.engine.fake_runner import EOS, VOCAB, FakeRunner, continue_alone, make_engine


def request(request_id: int, prompt: list[int], max_tokens: int = 6, *, n: int = 1, **params: object) -> AddRequest:
    settings = {"ignore_eos": True, **params}
    return AddRequest(request_id, prompt, SamplingParams(max_tokens=max_tokens, **settings), n=n)  # type: ignore[arg-type]


def run(engine: Engine, runner: FakeRunner, *, limit: int = 500) -> dict[tuple[int, int], list[SequenceOutput]]:
    """All outputs until the engine is idle, by request and choice."""
    outputs: dict[tuple[int, int], list[SequenceOutput]] = {}
    for _ in range(limit):
        for output in engine.step():
            outputs.setdefault((output.request_id, output.index), []).append(output)
        if not engine.has_work:
            engine.step()  # the idle self-check
            assert runner.violations == []
            stats = engine.stats()
            assert stats.blocks_owned == stats.num_running == stats.num_waiting == 0
            return outputs
    raise AssertionError("the engine did not become idle")


def tokens(outputs: list[SequenceOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def expected(prompt: list[int], max_tokens: int, max_len: int = 10_000) -> list[int]:
    return continue_alone(prompt, SamplingParams(max_tokens=max_tokens, ignore_eos=True), max_len)[0]


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


def test_a_request_id_in_use_is_refused_and_its_owner_goes_on() -> None:
    engine, _, runner = make_engine()
    engine.add(request(1, [1, 2], 8))
    first = tokens(engine.step())
    engine.add(request(1, [0, 0], 8))
    outputs = run(engine, runner)[1, 0]
    assert [o.error for o in outputs if o.error] == ["request 1 is running already"]
    assert first + tokens(outputs) == expected([1, 2], 8)
    engine.add(request(1, [0, 0], 8))
    assert tokens(run(engine, runner)[1, 0]) == expected([0, 0], 8)


def test_an_admission_that_raises_fails_that_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, scheduler, runner = make_engine()
    engine.add(request(1, [1]))
    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "add", lambda sequence: 1 / 0)
        engine.add(request(2, [1], n=3))
    outputs = run(engine, runner)
    assert {key for key, found in outputs.items() if found[-1].finish_reason == "error"} == {(2, 0), (2, 1), (2, 2)}
    assert tokens(outputs[1, 0]) == expected([1], 6)


def test_a_commit_that_raises_fails_that_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, scheduler, runner = make_engine()
    commit = scheduler.commit
    monkeypatch.setattr(scheduler, "commit", lambda row: 1 / 0 if row.sequence.request_id == 2 else commit(row))
    for i in (1, 2, 3):
        engine.add(request(i, [i % 3, 0]))
    outputs = run(engine, runner)
    assert outputs[2, 0][-1].finish_reason == "error"
    for i in (1, 3):
        assert tokens(outputs[i, 0]) == expected([i % 3, 0], 6)


def test_a_step_that_raises_fails_its_rows_and_the_engine_lives() -> None:
    engine, _, runner = make_engine(max_num_seqs=2)
    for i in range(3):
        engine.add(request(i, [i, 0]))
    runner.errors.append(RuntimeError("a kernel failed at /secret/path 0xdeadbeef"))
    outputs = run(engine, runner)
    for i in (0, 1):
        assert outputs[i, 0][-1].error == "internal error while computing this request"
    assert tokens(outputs[2, 0]) == expected([2, 0], 6)


def test_a_step_out_of_memory_is_tried_again_with_fewer_tokens() -> None:
    engine, scheduler, runner = make_engine(max_batched_tokens=64, max_num_seqs=4)
    prompt = [1, 2, 0] * 10
    engine.add(request(1, prompt, 4))
    runner.errors += [torch.OutOfMemoryError("CUDA out of memory")] * 3
    assert tokens(run(engine, runner)[1, 0]) == expected(prompt, 4)
    assert scheduler.max_batched_tokens == scheduler.max_prefill_tokens == 8


def test_a_step_that_cannot_be_smaller_fails_its_rows() -> None:
    engine, scheduler, runner = make_engine(max_batched_tokens=8, max_num_seqs=4)
    engine.add(request(1, [1] * 9))
    runner.errors += [torch.OutOfMemoryError("CUDA out of memory")] * 2
    assert run(engine, runner)[1, 0][-1].finish_reason == "error"
    engine.add(request(2, [1] * 9))
    assert tokens(run(engine, runner)[2, 0]) == expected([1] * 9, 6)
    assert scheduler.max_batched_tokens == 4


def test_what_is_not_finite_is_wiped_and_never_found_again() -> None:
    """Also where a neighbour shares the blocks: it keeps them, but nobody after it may."""
    engine, _, runner = make_engine()
    prompt = [1, 2, 0, 1] * 3 + [2]
    engine.add(request(1, prompt, 9))
    engine.step()
    engine.add(request(2, prompt, 9))
    (output,) = [output for output in engine.step() if output.request_id == 2]
    assert output.num_cached_tokens == 12
    runner.broken.add(next(iter(engine._sequences[1])))
    outputs = run(engine, runner)
    assert outputs[1, 0][-1].error == "the model computed no finite logits for this request"
    assert output.token_ids + tokens(outputs[2, 0]) == expected(prompt, 9)
    engine.add(request(3, prompt, 9))
    outputs = run(engine, runner)
    assert outputs[3, 0][0].num_cached_tokens == 0


def test_abort_forgets_what_was_not_said_yet() -> None:
    engine, _, runner = make_engine()
    engine.add(request(1, [], n=2))
    engine.add(request(2, [1]))
    engine.abort([1, 1, 99])
    assert {key[0] for key in run(engine, runner)} == {2}


def test_abort_ends_what_is_left_of_a_request() -> None:
    engine, _, runner = make_engine(max_num_seqs=1)
    engine.add(request(1, [1, 2], 2, n=3))
    while (1, 0, "length") not in {(o.request_id, o.index, o.finish_reason) for o in engine.step()}:
        pass
    engine.abort([1])
    engine.abort([1])
    assert engine.stats().aborted == 2 and not engine.has_work
    assert run(engine, runner) == {}


def test_a_leader_that_fails_frees_its_followers() -> None:
    engine, _, runner = make_engine(max_batched_tokens=4)
    prompt = [2, 1, 0] * 4
    engine.add(request(1, prompt, n=3))
    engine.step()
    runner.errors.append(RuntimeError("lost"))
    outputs = run(engine, runner)
    assert outputs[1, 0][-1].finish_reason == "error"
    for index in (1, 2):
        assert tokens(outputs[1, index]) == expected(prompt, 6)


def test_a_leader_preempted_in_its_prompt_keeps_its_followers_waiting() -> None:
    engine, scheduler, runner = make_engine(max_batched_tokens=4)
    prompt = [2, 1, 0] * 4
    engine.add(request(1, prompt, n=2))
    engine.step()
    scheduler.preempt(scheduler.running[0])
    outputs = run(engine, runner)
    assert outputs[1, 1][0].num_cached_tokens == 8
    assert tokens(outputs[1, 0]) == tokens(outputs[1, 1]) == expected(prompt, 6)


def test_shrinking_ends_what_can_go_no_further() -> None:
    """16 tokens are left: the first has more already, the second may reach 17, the third's prompt never fits."""
    engine, _, runner = make_engine(num_blocks=12, max_num_seqs=2)
    engine.add(request(1, [1] * 14, 20))
    engine.add(request(2, [2] * 4, 20))
    engine.add(request(3, [0] * 20, 5))
    said = {1: [], 2: []}  # type: dict[int, list[int]]
    for _ in range(4):
        for output in engine.step():
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
    for output in engine.step():
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


def test_counters_conserve_tokens_through_hits_and_preemptions() -> None:
    engine, _, runner = make_engine(num_blocks=9, max_batched_tokens=6)
    prompts = {i: [1, 2, 0, 1, 1, 2, 2, 0][: 4 + i % 5] + [i % 3] * (i % 4) for i in range(24)}
    for i, prompt in prompts.items():
        engine.add(request(i, prompt, 9))
    outputs = run(engine, runner)
    stats = engine.stats()
    assert stats.preemptions > 0 and stats.cached_tokens > 0
    assert stats.generation_tokens == sum(len(tokens(found)) for found in outputs.values()) == 24 * 9
    assert stats.prompt_tokens + stats.cached_tokens == sum(map(len, prompts.values()))
    assert stats.cached_tokens == sum(found[0].num_cached_tokens for found in outputs.values())
    for found in outputs.values():
        assert len({output.num_cached_tokens for output in found}) == 1


def test_end_of_sequence_ids_outside_the_logits_are_dropped() -> None:
    """They would be written into the logits of min_tokens rows: into a neighbour's, or out of bounds."""
    _, scheduler, _ = make_engine()
    odd = Engine(
        FakeRunner(num_blocks=4, block_size=4, max_num_seqs=1, context=8), scheduler, context=8, vocab_size=VOCAB,
        eos_token_ids=frozenset({-1, EOS, VOCAB, 10**6}), max_queued=1,
    )  # fmt: skip
    odd.add(request(1, [1], 4, ignore_eos=False, min_tokens=2))
    assert scheduler.waiting[0].eos_token_ids == {EOS}
