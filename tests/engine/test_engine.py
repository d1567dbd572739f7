"""The step loop over a fake model: its error boundary, its limits, its counters."""

import pytest

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


@pytest.mark.parametrize("chosen", [0, 1])
def test_abort_of_one_choice_leaves_the_others(chosen: int) -> None:
    """Also of the first, whose prompt the others wait for."""
    engine, _, runner = make_engine(max_batched_tokens=4)
    prompt = [2, 1, 0] * 4
    engine.add(request(1, prompt, n=3))
    engine.step()
    engine.abort([1], chosen)
    engine.abort([1], chosen)
    assert engine.stats().aborted == 1
    outputs = run(engine, runner)
    assert {index for _, index in outputs} == {0, 1, 2} - {chosen}
    assert all(tokens(found) == expected(prompt, 6) for found in outputs.values())


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


def test_the_idle_self_check_is_loud() -> None:
    engine, scheduler, runner = make_engine()
    engine.add(request(1, [1, 2]))
    run(engine, runner)
    scheduler.blocks._free.pop()
    with pytest.raises(AssertionError, match="free \\+ cached \\+ owned"):
        engine.step()
