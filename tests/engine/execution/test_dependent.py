"""Dependent launches serve where a step of one row says the same with them, sooner. The device is a fake."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from engine.device.ranks import ProcessGroup, Ranks
from engine.execution.dependent import CONTEXT, GAIN, TOKENS, Replay, choose_dependent
from engine.execution.graphs import DecodeGraphs
from engine.kernels.launches import dependence
from tests.engine.test_oracle import make_engine
from tests.tiny_models import VOCAB_SIZE

HOPPER = torch.device("cuda", 0)
PLAIN = 100e-6


@pytest.fixture(autouse=True)
def capability(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[tuple[int, int]]]:
    found = [(9, 0)]
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: found[0])
    yield found
    dependence.on = False


class FakeStep:
    """A step of one row, whose logits are its token, or what the step before has left where it begins too early."""

    def __init__(
        self, *, early: bool = False, refused: bool = False, lost: bool = False, seconds: float = 0.9 * PLAIN
    ) -> None:
        self._lost = lost
        self._early, self._refused, self._seconds = early, refused, seconds
        self._token = self._left = 0
        self.recorded: list[bool] = []
        self.tokens: list[int] = []

    def put(self, token: int) -> Callable[[], torch.Tensor]:
        self._token = token
        return lambda: torch.tensor([[float(token)]])

    def record(self, step: Callable[[], torch.Tensor]) -> Replay:
        is_dependent = dependence.on
        self.recorded.append(is_dependent)
        if is_dependent and self._refused:
            raise RuntimeError("invalid argument")
        logits = step()

        def run() -> float:
            logits[:] = self._left if self._early and is_dependent else self._token
            self._left = self._token
            self.tokens.append(self._token)
            return self._seconds if is_dependent else PLAIN

        return Replay(run, logits)

    def choose(self, device: torch.device = HOPPER, ranks: Ranks | None = None) -> bool:
        return choose_dependent(device, self.put, ranks, record=self.record, timer=seconds_of, settle=self.settle)

    def settle(self) -> None:
        if self._lost:
            raise RuntimeError("an illegal memory access was encountered")


def seconds_of(run: Callable[[], object]) -> float:
    found = run()
    assert isinstance(found, float)
    return found


def test_what_says_the_same_sooner_serves(caplog: pytest.LogCaptureFixture) -> None:
    step = FakeStep()
    with caplog.at_level("INFO"):
        assert step.choose() and dependence.on
    assert step.recorded == [False, True] and len(TOKENS) >= 20
    assert set(step.tokens) == set(TOKENS), "a step of one token alone would find what it left itself"
    assert [record.getMessage() for record in caplog.records] == [
        "launches are dependent: a decoding step of one row takes 100 us, and 90 with dependent ones"
    ]


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (FakeStep(early=True), "the logits of a step would be others"),
        (FakeStep(seconds=(GAIN + 0.005) * PLAIN), "launches are not dependent: a decoding step"),
        (FakeStep(refused=True), "cannot be tried"),
    ],
)
def test_what_does_not_is_left(step: FakeStep, said: str, caplog: pytest.LogCaptureFixture) -> None:
    dependence.on = True  # of the model before
    with caplog.at_level("INFO"):
        assert not step.choose() and not dependence.on
    assert said in caplog.text


def test_it_is_tried_where_it_can_be(capability: list[tuple[int, int]]) -> None:
    step = FakeStep()
    assert not step.choose(torch.device("cpu"))
    assert not step.choose(ranks=Ranks(0, 2, HOPPER, ProcessGroup()))
    assert not choose_dependent(HOPPER, None)
    capability[0] = (8, 9)
    assert not step.choose()
    assert not step.recorded and not dependence.on
    capability[0] = (12, 0)
    assert step.choose()


def test_a_trial_that_takes_its_process_along_is_not_tried_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mark = tmp_path / "dependent-launches"
    with pytest.raises(RuntimeError, match="illegal memory access"):
        FakeStep(refused=True, lost=True).choose()
    assert not dependence.on and mark.exists()
    assert FakeStep().choose(), "the mark is of a process that lives: another model is being tried"
    mark.write_text(f"{os.getpid()} {psutil.Process().create_time() - 5}")  # of one before, with the same number
    step = FakeStep()
    assert not step.choose() and not step.recorded and "did not end" in caplog.text
    assert FakeStep().choose() and not mark.exists(), "the next start tries again"
    for what in ("", "no number", "1"):
        mark.write_text(what)
        assert FakeStep().choose() is (what != "1")
    monkeypatch.setenv("HEADRACE_CACHE", "/dev/null")
    assert FakeStep().choose(), "where it cannot be noted it is tried all the same"


def test_what_is_tried_is_a_step_behind_many_tokens(
    tiny_model_dir: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner: Any = make_engine(tiny_model_dir("llama"), graphs=True, max_num_seqs=16, context=400)._runner
    met = []
    forward = DecodeGraphs._step

    def noted(self: DecodeGraphs, size: int, lens: list[int] | None) -> torch.Tensor:
        met.append((size, int(self._fields(size)[4, 0]), int(self._fields(size)[0, 0])))
        return forward(self, size, lens)

    monkeypatch.setattr(DecodeGraphs, "_step", noted)
    logits = runner.padded.put_one(7)()
    assert logits.shape == (1, VOCAB_SIZE) and torch.isfinite(logits).all()
    assert met == [(1, 400, 7)], "a row of all the context there is, up to CONTEXT tokens"
    assert CONTEXT > 400
