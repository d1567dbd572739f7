"""The step loop over a fake model: its error boundary, its limits, its counters."""

import msgspec
import pytest

from engine.engine import Engine
from engine.messages import AddRequest, AskCached, SequenceOutput
from engine.sampling_params import SamplingParams
from tests.engine.fake_runner import EOS, VOCAB, FakeRunner, continue_alone, make_engine, scores_alone


def request(request_id: int, prompt: list[int], max_tokens: int = 6, *, n: int = 1, **params: object) -> AddRequest:
    settings = {"ignore_eos": True, **params}
    return AddRequest(request_id, prompt, SamplingParams(max_tokens=max_tokens, **settings), n=n)  # type: ignore[arg-type]


def step(engine: Engine) -> list[SequenceOutput]:
    """What a step gives, but for the news that a request is queued."""
    return [output for output in engine.step() if not output.is_empty]


def run(engine: Engine, runner: FakeRunner, *, limit: int = 500) -> dict[tuple[int, int], list[SequenceOutput]]:
    """All outputs until the engine is idle, by request and choice."""
    outputs: dict[tuple[int, int], list[SequenceOutput]] = {}
    for _ in range(limit):
        for output in step(engine):
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
    assert engine.failure is None


def test_what_onednn_never_gets_over_is_noticed() -> None:
    engine, _, runner = make_engine()
    engine.add(request(1, [1, 0]))
    runner.errors.append(RuntimeError("could not create a primitive"))
    assert run(engine, runner)[1, 0][-1].finish_reason == "error"
    assert engine.failure is not None


def test_what_the_cache_holds_is_told_as_a_request_would_find_it() -> None:
    engine, _, runner = make_engine()
    prompt = [1, 2, 0, 1] * 3 + [2]

    def held(token_ids: list[int], salt: bytes = b"") -> int:
        before = engine.stats()
        number = engine.count_cached(AskCached(1, token_ids, salt))
        assert engine.stats() == before, "asking changes nothing"
        return number

    assert held(prompt) == 0
    engine.add(request(1, prompt, 9))
    run(engine, runner)
    assert held(prompt) == 12 and held(prompt, b"another") == 0
    assert held(prompt[:12]) == 8, "the last token is always computed"
    assert held([*prompt[:6], 0, 0, *prompt[8:]]) == 4 and held([0, *prompt]) == 0
    engine.add(request(2, prompt, 9))
    assert run(engine, runner)[2, 0][0].num_cached_tokens == 12


def test_what_is_not_finite_is_wiped_and_never_found_again() -> None:
    """Also where a neighbour shares the blocks: it keeps them, but nobody after it may."""
    engine, _, runner = make_engine()
    prompt = [1, 2, 0, 1] * 3 + [2]
    engine.add(request(1, prompt, 9))
    engine.step()
    engine.add(request(2, prompt, 9))
    (output,) = [output for output in step(engine) if output.request_id == 2]
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


def test_a_request_is_said_to_be_queued_before_anything_is_computed() -> None:
    engine, _, runner = make_engine()
    engine.add(request(1, [1, 2], n=3))
    engine.add(request(2, []))
    accepted, refused = engine.take_outputs()
    assert (accepted.request_id, accepted.index, accepted.is_empty) == (1, 0, True)
    assert refused.finish_reason == "error" and not refused.is_empty
    assert runner.num_steps == 0 and engine.take_outputs() == []


def test_without_tokens_to_generate_a_prompt_is_computed_and_ends() -> None:
    engine, _, runner = make_engine(max_batched_tokens=5, context=40)
    prompt = [1, 2, 0, 1] * 3
    engine.add(request(1, prompt, 0, n=2))
    engine.add(request(2, [1] * 40, 0))
    engine.add(request(3, [1] * 41, 0))
    outputs = run(engine, runner)
    for key in ((1, 0), (1, 1), (2, 0)):
        (output,) = outputs[key]
        assert output.finish_reason == "length" and output.token_ids == []
    assert "41 tokens; this model's context is 40 tokens" in str(outputs[3, 0][0].error)
    stats = engine.stats()
    assert stats.generation_tokens == 0 and stats.prompt_tokens + stats.cached_tokens == 2 * 12 + 40
    engine.add(request(4, prompt, 1))
    assert run(engine, runner)[4, 0][-1].num_cached_tokens == 8


def test_without_tokens_to_generate_a_prompt_may_fill_the_pool() -> None:
    engine, _, runner = make_engine(num_blocks=3, block_size=4, context=40)
    engine.add(request(1, [1] * 12, 0))
    engine.add(request(2, [1] * 13, 0))
    outputs = run(engine, runner)
    assert [outputs[i, 0][-1].finish_reason for i in (1, 2)] == ["length", "error"]


def scores(outputs: list[SequenceOutput]) -> list[float]:
    return [entry.logprob for output in outputs for entry in output.prompt_logprobs or ()]


@pytest.mark.parametrize("max_tokens", [0, 1, 6])
def test_prompts_are_scored_whole_whatever_the_cache_holds(max_tokens: int) -> None:
    engine, _, runner = make_engine(max_batched_tokens=5)
    prompt = [1, 2, 0, 1] * 3 + [2]
    engine.add(request(1, prompt, 6))
    run(engine, runner)
    engine.add(request(2, prompt, max_tokens, n=2, prompt_logprobs=0))
    outputs = run(engine, runner)
    assert scores(outputs[2, 0]) == scores_alone(prompt)
    assert [o.num_cached_tokens for o in outputs[2, 0] if o.token_ids or o.finish_reason][-1:] == [0]
    assert scores(outputs[2, 1]) == [] and outputs[2, 1][-1].num_cached_tokens == 12
    assert tokens(outputs[2, 0]) == tokens(outputs[2, 1]) == expected(prompt, 6)[:max_tokens]


def test_what_was_scored_is_neither_scored_nor_sent_again() -> None:
    """After a preemption the blocks of tokens that were scored already may come from the cache."""
    engine, scheduler, runner = make_engine(max_batched_tokens=5)
    prompt = [1, 2, 0, 1] * 3 + [2, 0]
    engine.add(request(1, prompt, 2, prompt_logprobs=0))
    first = [output for _ in range(2) for output in engine.step()]
    assert len(scores(first)) == 10
    scheduler.preempt(scheduler.running[0])
    outputs = run(engine, runner)[1, 0]
    assert scores(first) + scores(outputs) == scores_alone(prompt)
    assert tokens(outputs) == expected(prompt, 2) and outputs[-1].num_cached_tokens == 0
    assert engine.stats().prompt_tokens == len(prompt)


def test_scores_that_are_not_finite_fail_their_request_only() -> None:
    engine, _, runner = make_engine()
    engine.add(request(1, [1, 2, 0], 3, prompt_logprobs=0))
    engine.add(request(2, [2, 2, 0], 3, prompt_logprobs=0))
    runner.broken.add(next(iter(engine._sequences[1])))
    outputs = run(engine, runner)
    assert outputs[1, 0][-1].error == "the model computed no finite logits for this request"
    assert scores(outputs[1, 0]) == [] and scores(outputs[2, 0]) == scores_alone([2, 2, 0])


def test_a_step_scores_no_more_tokens_than_it_may() -> None:
    engine, scheduler, runner = make_engine(max_num_seqs=4, max_batched_tokens=64)
    scheduler.max_scored_tokens = 6
    for i in range(3):
        engine.add(request(i, [i, 1] * 8, 2, prompt_logprobs=0))
    engine.add(request(3, [2] * 12, 2))
    found: dict[int, list[float]] = {}
    for _ in range(40):
        outputs = engine.step()
        assert len(scores(outputs)) <= 6
        for output in outputs:
            found.setdefault(output.request_id, []).extend(scores([output]))
    assert found == {**{i: scores_alone([i, 1] * 8) for i in range(3)}, 3: []}
    run(engine, runner)


def test_lower_priority_goes_first_and_gives_way_last() -> None:
    engine, scheduler, runner = make_engine(max_num_seqs=2, num_blocks=8)
    for request_id, priority in enumerate([5, 0, -3, 0, 5]):
        engine.add(msgspec.structs.replace(request(request_id, [1, 2, 0, 1], 20), priority=priority))
    assert [s.request_id for s in scheduler.waiting] == [2, 1, 3, 0, 4]
    engine.step()
    assert [s.request_id for s in scheduler.running] == [2, 1]
    first, second = scheduler.running
    while not scheduler.num_preemptions:
        engine.step()
    assert (first.num_preemptions, second.num_preemptions) == (0, 1)
    ends = [key for key, found in run(engine, runner).items() if found[-1].finish_reason]
    assert len(ends) == 5


def test_a_priority_beyond_its_bounds_is_refused() -> None:
    engine, _, _ = make_engine()
    engine.add(msgspec.structs.replace(request(1, [1]), priority=-1001))
    (output,) = engine.step()
    assert output.error_param == "priority" and "between -1000 and 1000, got -1001" in str(output.error)
