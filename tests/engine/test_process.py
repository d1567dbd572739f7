"""The loop of the engine process, with a pipe and an engine that follow a script."""

from typing import Any
from unittest.mock import Mock

import pytest

from engine import process
from engine.messages import EngineStats, Shutdown


def test_memory_goes_back_once_when_the_engine_falls_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = iter([False, False, True, True, False, False, False, True, False, False])
    looks: list[bool] = []
    given_back: list[int] = []

    class Engine:
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
    process.serve(engine, Mock(receive=receive))  # type: ignore[arg-type]
    assert len(given_back) == 2, "once after each time it worked"
