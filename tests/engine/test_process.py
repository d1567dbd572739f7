"""The loop of the engine process, with a pipe and an engine that follow a script."""

import os
import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from engine import process
from engine.config import EngineConfig
from engine.errors import ModelLoadError
from engine.messages import EngineStats, SequenceOutput, Shutdown


def test_memory_goes_back_once_when_the_engine_falls_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = iter([False, False, True, True, False, False, False, True, False, False])
    looks: list[bool] = []
    given_back: list[int] = []

    class Engine:
        failure = None

        @property
        def has_work(self) -> bool:
            return self._busy

        def start_round(self) -> None:
            self._busy = next(busy)
            looks.append(self._busy)

        def step(self) -> list[Any]:
            return []

        def take_outputs(self) -> list[Any]:
            return []

        def stats(self) -> EngineStats:
            return EngineStats()

    engine = Engine()
    engine.start_round()

    def receive(timeout: float) -> list[Any]:
        try:
            engine.start_round()
        except StopIteration:
            return [Shutdown()]
        return []

    monkeypatch.setattr(process, "give_memory_back", lambda: given_back.append(len(looks)))
    assert process.serve(engine, Mock(receive=receive), Mock()) == 0  # type: ignore[arg-type]
    assert len(given_back) == 2, "once after each time it worked"


def test_an_engine_that_will_not_get_over_it_ends_when_everybody_is_told() -> None:
    told = [SequenceOutput(1, finish_reason="error", error="no")]
    engine = SimpleNamespace(
        has_work=True, failure="made up", step=lambda: told, take_outputs=lambda: [], stats=EngineStats
    )
    pipe = Mock(receive=lambda timeout: [])
    assert process.serve(engine, pipe, Mock()) == 1  # type: ignore[arg-type]
    assert [call.args[0].outputs for call in pipe.send.call_args_list] == [told]


@pytest.mark.parametrize("own", [None, "7"])
def test_what_onednn_keeps_is_bounded_unless_the_operator_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    for name in names:
        monkeypatch.setenv(name, own or "")
        if own is None:
            monkeypatch.delenv(name)
    seen: list[str] = []

    def build(*_: Any, **__: Any) -> None:
        seen.extend(os.environ[name] for name in names)
        raise ModelLoadError("no model")

    monkeypatch.setitem(sys.modules, "engine.build", SimpleNamespace(build_engine=build))
    with pytest.raises(ModelLoadError):
        process.load_engine(EngineConfig(name="m", source="s"), Mock())
    assert seen == [own or str(process.KEPT_PRODUCTS)] * 2
