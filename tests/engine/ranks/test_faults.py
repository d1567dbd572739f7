"""What fails on rank 0 alone leaves ranks in step; what fails after they were told ends them, and no single request."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.build import build_engine
from engine.config import EngineConfig
from engine.device.ranks import leave
from engine.engine import Engine
from engine.errors import ConfigError, ModelLoadError
from engine.messages import AddRequest
from engine.ranks.messages import Forward, decode_order, encode
from engine.ranks.steps import host_of, message_of
from engine.sampling_params import SamplingParams
from tests.engine.ranks.engines import shared_engine
from tests.engine.test_oracle import generate, make_engine, random_mix, run

TinyModelDir = Callable[[str], Path]
TIGHT = {"num_blocks": 40, "context": 90, "max_batched_tokens": 16}


@pytest.fixture
def engine(tiny_model_dir: TinyModelDir) -> Iterator[Engine]:
    with shared_engine(tiny_model_dir("llama"), overlap=True, **TIGHT) as made:
        yield made


def sometimes(function: Callable[..., Any], error: Exception, dice: random.Random) -> Callable[..., Any]:
    def faulty(*arguments: Any, **options: Any) -> Any:
        if dice.random() < 0.15:
            raise error
        return function(*arguments, **options)

    return faulty


def test_ranks_stay_in_step_whatever_happens_to_requests(
    engine: Engine, tiny_model_dir: TinyModelDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were one collective too many on a rank, all that comes after would be wrong, or wait for ever."""
    for seed in range(3):
        disturb(engine, tiny_model_dir("llama"), seed, monkeypatch)


def disturb(engine: Engine, directory: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(seed)
    runner = engine._runner._runner  # type: ignore[attr-defined]
    with monkeypatch.context() as patched:
        patched.setattr(runner, "pack", sometimes(runner.pack, torch.OutOfMemoryError("made up"), dice))
        patched.setattr(runner, "sample", sometimes(runner.sample, RuntimeError("made up"), dice))
        requests, arrivals = random_mix(seed, longest=60)
        waiting = sorted(requests, key=lambda number: arrivals[number])
        ended = set()
        while waiting or engine.has_work:
            if waiting and dice.random() < 0.5:
                engine.add(requests[waiting.pop()])
            if dice.random() < 0.1:
                engine.abort([dice.choice(list(requests))])
            ended |= {output.error for output in engine.step() if output.finish_reason}
            assert engine.failure is None
    assert ended - {None}, "nothing failed"
    requests, arrivals = random_mix(seed + 10, longest=60)
    outputs = run(engine, requests, arrivals)
    for number, request in requests.items():
        assert outputs[number] == generate(directory, request.prompt_token_ids, request.params.max_tokens)


def test_blocks_are_wiped_on_every_rank_and_a_model_sleeps_on_every_rank(tiny_model_dir: TinyModelDir) -> None:
    prompt = [5, 6, 7, 8]
    with shared_engine(tiny_model_dir("llama"), fusion=False) as engine:
        engine._runner.wipe_blocks([1, 2, 3], 4)
        _, host_bytes = engine.sleep()
        weights = engine._runner._runner.loaded.weights_bytes  # type: ignore[attr-defined]
        assert host_bytes >= 0.9 * weights
        outputs = run(engine, {1: AddRequest(1, prompt, SamplingParams(max_tokens=8, temperature=0))}, {1: 0})
    assert outputs[1] == generate(tiny_model_dir("llama"), prompt, 8)


def test_a_failed_forward_is_nobodys_request(tiny_model_dir: TinyModelDir, monkeypatch: pytest.MonkeyPatch) -> None:
    with shared_engine(tiny_model_dir("llama"), **TIGHT) as engine:
        leader = engine._runner
        monkeypatch.setattr(leader._runner, "run", sometimes(len, RuntimeError("made up"), random.Random(3)))  # type: ignore[attr-defined]
        engine.add(AddRequest(1, [5, 6, 7], SamplingParams(max_tokens=8, temperature=0)))
        assert not any(output.error or output.finish_reason for output in engine.step()) and engine.failure is not None
        assert str(leader._team.watch.failure) == "rank 0 failed: TypeError"  # type: ignore[attr-defined]


def test_steps_come_over_as_they_are(tiny_model_dir: TinyModelDir) -> None:
    engine = make_engine(tiny_model_dir("llama"))
    seen = []
    runner = engine._runner
    launch = runner.launch  # type: ignore[attr-defined]
    runner.launch = lambda rows, host: seen.append(host) or launch(rows, host)  # type: ignore[attr-defined]
    run(engine, *random_mix(1, longest=40))
    assert len(seen) > 20
    for host in seen:
        order = decode_order(encode(message_of(host)))
        assert isinstance(order, Forward)
        found = host_of(order)
        for name in ("token_ids", "positions", "slot_mapping", "slots", "logits_index"):
            assert (getattr(found, name) == getattr(host, name)).all() and getattr(found, name).dtype == "int64"
        assert (found.changes.places == host.changes.places).all()
        assert (found.query_lens, found.context_lens) == (host.query_lens, host.context_lens)
        assert (found.num_decodes, found.unread, found.is_text) == (host.num_decodes, host.unread, host.is_text)


@pytest.mark.parametrize(
    ("family", "ranks", "said"),
    [
        ("llama", 3, r"tensor_parallel: 3 does not divide the model's 4 attention heads"),
        ("olmoe", 2, r"models of the type olmoe are not divided here"),
    ],
)
def test_sizes_that_cannot_be_divided_are_refused_with_those_that_can(
    family: str, ranks: int, said: str, tiny_model_dir: TinyModelDir
) -> None:
    config = EngineConfig(name="t", source=str(tiny_model_dir(family)), device="cpu", tensor_parallel=ranks)
    try:
        with pytest.raises((ConfigError, ModelLoadError), match=said) as refused:
            build_engine(config, lambda *_: None)
    finally:
        leave()
    assert refused.value.hint
    if family == "llama":
        assert refused.value.hint.endswith(": 1, 2, 4")


@pytest.mark.parametrize("ranks", [0, -1, 65, 99999])
def test_no_process_is_started_for_a_number_of_ranks_that_cannot_be(ranks: int) -> None:
    with pytest.raises(ConfigError, match=f"tensor_parallel must be from 1 to 64, got {ranks}"):
        EngineConfig(name="t", source="s", tensor_parallel=ranks)
