"""Constrained sequences in the engine: what comes out matches, and nobody else is touched."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from engine.build import build_engine
from engine.config import EngineConfig
from engine.constraint import Constraint, ReasoningBudget
from engine.engine import Engine
from engine.grammar.backend_llguidance import LlguidanceGrammar
from engine.messages import AddRequest, SequenceOutput
from engine.sampling_params import SamplingParams
from engine.token_text import TokenText

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "size": {"type": "integer", "minimum": 1, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "size", "tags"],
    "additionalProperties": False,
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

JSON = Constraint(kind="json_schema", source=json.dumps(SCHEMA))
DATE = Constraint(kind="regex", source=r"\d{4}-\d{2}-\d{2}")
HOT = SamplingParams(max_tokens=120, temperature=1.8, seed=7)
WARM = SamplingParams(max_tokens=120, temperature=1.0, top_k=8, seed=7)
"""Hot sampling draws near so many boundaries that rounding, which the batch's shape changes, can tip one."""
GREEDY = SamplingParams(max_tokens=120, temperature=0)


class Bench:
    """A real engine, its tokenizer, and requests that run in it together."""

    def __init__(self, directory: Path, **options: object) -> None:
        config = EngineConfig(
            name="smol",
            source=str(directory),
            device="cpu",
            dtype="float32",
            threads=2,
            **{"context": 512, **options},  # type: ignore[arg-type]
        )
        self.engine: Engine = build_engine(config, lambda *_: None)[0]
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._text = TokenText(self.tokenizer, json.loads(self.tokenizer.decoder.__getstate__()))
        self._next_id = 0

    def prompt(self, text: str) -> list[int]:
        chat = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        return list(self.tokenizer.encode(chat, add_special_tokens=False).ids)

    def text(self, ids: list[int]) -> str:
        return self._text.join(i for i in ids if i > 16).decode()

    def add(self, text: str, params: SamplingParams, n: int = 1) -> int:
        self._next_id += 1
        self.engine.add(AddRequest(self._next_id, self.prompt(text), params, n=n))
        return self._next_id

    def run(self) -> dict[tuple[int, int], list[SequenceOutput]]:
        """All outputs until nothing is left to do."""
        found: dict[tuple[int, int], list[SequenceOutput]] = {}
        while self.engine.has_work or self.engine.stats().num_waiting:
            for output in self.engine.step():
                found.setdefault((output.request_id, output.index), []).append(output)
            if not self.engine.has_work:
                time.sleep(0.005)  # a constraint is being compiled
        stats = self.engine.stats()
        assert stats.blocks_owned == stats.num_running == stats.num_waiting == 0
        return found

    def answer(self, text: str, params: SamplingParams) -> tuple[list[int], str | None]:
        key = (self.add(text, params), 0)
        return collected(self.run()[key])


def collected(outputs: list[SequenceOutput]) -> tuple[list[int], str | None]:
    return [token for output in outputs for token in output.token_ids], outputs[-1].finish_reason


@pytest.fixture(scope="module")
def bench(smollm2_dir: Path) -> Iterator[Bench]:
    bench = Bench(smollm2_dir, max_num_seqs=8)
    yield bench
    bench.engine.close()


def check_schema(text: str) -> None:
    value = json.loads(text)
    assert set(value) == {"name", "size", "tags"}
    assert len(value["name"]) <= 12 and 1 <= value["size"] <= 99 and 1 <= len(value["tags"]) <= 3


@pytest.mark.parametrize("params", [GREEDY, HOT, replace(HOT, top_p=0.5), replace(HOT, logprobs=2)])
def test_the_answer_matches(bench: Bench, params: SamplingParams) -> None:
    ids, reason = bench.answer("Describe a toy as JSON.", replace(params, constraint=JSON))
    assert reason == "stop"
    check_schema(bench.text(ids))
    ids, reason = bench.answer("When was that?", replace(params, constraint=DATE))
    assert reason == "stop" and re.fullmatch(DATE.source, bench.text(ids))


@pytest.mark.parametrize("params", [GREEDY, HOT, replace(HOT, frequency_penalty=1.5, repetition_penalty=1.3)])
def test_forced_tokens_are_those_that_sampling_gives(
    bench: Bench, params: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = replace(params, constraint=JSON)
    steps = bench.engine.stats().steps
    together, _ = bench.answer("Describe a toy as JSON.", asked)
    steps = bench.engine.stats().steps - steps
    assert steps < len(together), "nothing was forced"
    monkeypatch.setattr(LlguidanceGrammar, "forced_tokens", lambda self: [])
    one_by_one, _ = bench.answer("Describe a toy as JSON.", asked)
    assert together == one_by_one


def test_every_choice_follows_the_constraint_by_itself(bench: Bench) -> None:
    request = bench.add("Describe a toy as JSON.", replace(HOT, constraint=JSON), n=4)
    outputs = bench.run()
    texts = [bench.text(collected(outputs[request, index])[0]) for index in range(4)]
    for text in texts:
        check_schema(text)
    assert len(set(texts)) > 1


def test_neighbours_say_what_they_say_alone(bench: Bench) -> None:
    """Slots and rows of the bitmask change hands all the time; what is free must stay free."""
    plain = [replace(WARM, max_tokens=25, seed=seed) for seed in range(4)]
    alone = [bench.answer("Tell me a story.", params) for params in plain]
    constrained = [replace(WARM, seed=seed, constraint=constraint) for seed in range(4) for constraint in (JSON, DATE)]
    others = [bench.add("Describe a toy as JSON.", params) for params in constrained[:4]]
    ours = [bench.add("Tell me a story.", params) for params in plain]
    others += [bench.add("Describe a toy as JSON.", params) for params in constrained[4:]]
    outputs = bench.run()
    assert [collected(outputs[request, 0]) for request in ours] == alone
    for request, params in zip(others, constrained, strict=True):
        ids, reason = collected(outputs[request, 0])
        assert reason == "stop"
        if params.constraint is DATE:
            assert re.fullmatch(DATE.source, bench.text(ids))
        else:
            check_schema(bench.text(ids))


def test_preemption_changes_nothing(bench: Bench, smollm2_dir: Path) -> None:
    asked = [replace(WARM, seed=seed, constraint=JSON) for seed in range(6)]
    alone = [bench.answer("Describe a toy as JSON.", params) for params in asked]
    small = Bench(smollm2_dir, num_blocks=20, block_size=8, max_num_seqs=6, context=None)
    try:
        requests = [small.add("Describe a toy as JSON.", params) for params in asked]
        outputs = small.run()
        assert small.engine.stats().preemptions > 0
        assert [collected(outputs[request, 0]) for request in requests] == alone
    finally:
        small.engine.close()


def test_an_answer_cut_by_its_limit_says_so(bench: Bench) -> None:
    for limit in range(1, 12):
        ids, reason = bench.answer("Describe a toy.", replace(GREEDY, max_tokens=limit, constraint=JSON))
        assert len(ids) == limit and reason == "length"


def test_log_probabilities_come_for_every_token(bench: Bench) -> None:
    key = (bench.add("Describe a toy.", replace(GREEDY, logprobs=1, constraint=JSON)), 0)
    outputs = bench.run()[key]
    assert all(len(output.logprobs or []) == len(output.token_ids) for output in outputs)


def test_stop_tokens_may_come_where_the_text_can_end(bench: Bench) -> None:
    constraint = Constraint(kind="regex", source="[a-z ]{1,200}")
    stop = bench.tokenizer.token_to_id("Q")
    params = replace(GREEDY, constraint=constraint, stop_token_ids=(stop,), logit_bias={stop: 100.0})
    ids, reason = bench.answer("Say something.", params)
    assert reason == "stop" and ids[-1] == stop and len(ids) == 2


def test_a_stop_token_among_what_must_come_ends_the_answer(bench: Bench) -> None:
    """As it does where nothing is computed ahead."""
    constraint = Constraint(kind="regex", source="Paris is the capital of France")
    asked = replace(GREEDY, constraint=constraint)
    whole, _ = bench.answer("Where?", asked)
    for place in range(1, len(whole)):
        stopped = bench.answer("Where?", replace(asked, stop_token_ids=(whole[place],)))
        assert stopped == (whole[: whole.index(whole[place]) + 1], "stop")


def test_end_of_sequence_waits_for_min_tokens(bench: Bench) -> None:
    constraint = Constraint(kind="regex", source="[0-9]{1,30}")
    params = replace(GREEDY, constraint=constraint, min_tokens=10)
    ids, _ = bench.answer("How many?", params)
    assert len(ids) >= 10


def test_ignore_eos_cannot_outlast_a_constraint(bench: Bench) -> None:
    ids, reason = bench.answer("When?", replace(GREEDY, constraint=DATE, ignore_eos=True))
    assert reason == "stop" and re.fullmatch(DATE.source, bench.text(ids))


def test_reasoning_comes_first_and_its_budget_ends_it(bench: Bench) -> None:
    end = "</think>"
    budget = ReasoningBudget(max_tokens=9, end_token_ids=tuple(bench.tokenizer.encode(end).ids), end=end)
    params = replace(HOT, constraint=replace(DATE, after=end), reasoning_budget=budget)
    ids, reason = bench.answer("When was that?", params)
    thought, mark, answer = bench.text(ids).partition(end)
    assert mark and reason == "stop" and re.fullmatch(DATE.source, answer)
    assert len(bench.tokenizer.encode(thought).ids) >= 5
    free, _ = bench.answer("When was that?", replace(GREEDY, max_tokens=30, reasoning_budget=budget))
    assert end in bench.text(free) and not bench.text(free).endswith(end)


@pytest.mark.parametrize("source", ["(", r"(a)\1"])
def test_a_refusal_is_the_requests_own(bench: Bench, source: str) -> None:
    bad = bench.add("x", replace(GREEDY, constraint=Constraint(kind="regex", source=source, param="response_format")))
    good = bench.add("x", replace(GREEDY, constraint=DATE))
    outputs = bench.run()
    (refusal,) = outputs[bad, 0]
    assert refusal.finish_reason == "error" and refusal.error_param == "response_format"
    assert collected(outputs[good, 0])[1] == "stop"
    assert outputs[good, 0][0].is_empty, "the first output says that the request is queued"


def test_what_looks_ahead_is_followed(bench: Bench) -> None:
    params = replace(GREEDY, constraint=Constraint(kind="regex", source="(?!a)[ab]", param="response_format"))
    ids, reason = bench.answer("x", params)
    assert (bench.text(ids), reason) == ("b", "stop")


def test_a_request_that_is_aborted_while_compiling_leaves_nothing(bench: Bench) -> None:
    request = bench.add("x", replace(GREEDY, constraint=replace(DATE, source=r"\d{3}-\d{3}")))
    assert bench.engine.stats().num_waiting == 1
    bench.engine.abort([request])
    assert bench.engine.stats().num_waiting == 0
    later = bench.add("x", replace(GREEDY, constraint=replace(DATE, source=r"\d{4}-\d{4}")))  # compiled after it
    assert {request_id for request_id, _ in bench.run()} == {later}, f"{request} was aborted"


@pytest.mark.parametrize("where", ["fill_bitmask", "accept", "forced_tokens", "is_finished"])
def test_an_exception_in_a_grammar_fails_its_request_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    plain = replace(WARM, max_tokens=30)
    alone = bench.answer("Tell me a story.", plain)
    calls = 0

    def raising(self: LlguidanceGrammar, *args: object) -> object:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise ValueError("injected")
        return original(self, *args)

    original = getattr(LlguidanceGrammar, where)
    if isinstance(original, property):
        getter = original.fget
        assert getter is not None
        original = getter
        monkeypatch.setattr(LlguidanceGrammar, where, property(raising))
    else:
        monkeypatch.setattr(LlguidanceGrammar, where, raising)
    victim = bench.add("Describe a toy.", replace(WARM, constraint=JSON))
    neighbour = bench.add("Tell me a story.", plain)
    outputs = bench.run()
    assert collected(outputs[victim, 0])[1] == "error" and outputs[victim, 0][-1].error
    assert "injected" not in (outputs[victim, 0][-1].error or "")
    assert collected(outputs[neighbour, 0]) == alone


def test_a_dead_end_is_an_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bitmask that allows nothing."""

    def nothing(self: LlguidanceGrammar, row: np.ndarray) -> bool:
        row[:] = 0
        return True

    monkeypatch.setattr(LlguidanceGrammar, "fill_bitmask", nothing)
    key = (bench.add("Describe a toy.", replace(WARM, constraint=JSON)), 0)
    last = bench.run()[key][-1]
    assert last.finish_reason == "error" and "allows no further token" in (last.error or "")
