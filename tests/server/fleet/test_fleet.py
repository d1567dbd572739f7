"""Supervision: deaths, restarts, hangs, giving up, and leaving nothing behind."""

import asyncio
import contextlib
import dataclasses
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from engine.errors import EngineDeadError, ModelLoadError
from engine.sampling_params import SamplingParams
from server.fleet.engine_process import describe_exit
from server.fleet.fleet import EngineHandle, Fleet, FleetPolicy, ModelState
from tests.server.fakes import FAST_POLICY, Script, engine_config, set_script


@asynccontextmanager
async def fleet_of(policy: FleetPolicy = FAST_POLICY, *names: str) -> AsyncIterator[Fleet]:
    fleet = Fleet([engine_config(name) for name in names or ("fake",)], policy)
    await fleet.start()
    try:
        yield fleet
    finally:
        await fleet.stop()


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def answers(handle: EngineHandle) -> bool:
    assert handle.client is not None
    tokens = [
        token
        async for outputs in handle.client.submit([1], SamplingParams(max_tokens=3))
        for output in outputs
        for token in output.token_ids
    ]
    return len(tokens) == 3


@pytest.fixture
def script(smollm2_dir: Path) -> Script:
    return Script(model_dir=str(smollm2_dir), token_ids=[5, 6, 7])


def test_a_dead_engine_is_started_again(monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
    set_script(monkeypatch, script)

    async def scenario() -> None:
        async with fleet_of() as fleet:
            handle = fleet.handles["fake"]
            assert await handle.wait_settled() is ModelState.READY
            for number in range(1, 4):
                assert await answers(handle)
                pid = handle.pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                await until(lambda: handle.state is ModelState.RESTARTING)
                assert handle.client is None and not handle.is_live
                await until(lambda: handle.state is ModelState.READY)
                assert handle.restarts == number and handle.pid != pid
            assert await answers(handle)

    asyncio.run(scenario())


def test_after_too_many_deaths_it_gives_up_and_says_so(monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
    set_script(monkeypatch, script)
    policy = dataclasses.replace(FAST_POLICY, max_crashes=3)

    async def scenario() -> None:
        async with fleet_of(policy) as fleet:
            handle = fleet.handles["fake"]
            await handle.wait_settled()
            while handle.state is not ModelState.FAILED:
                if handle.state is ModelState.READY and handle.pid is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(handle.pid, signal.SIGKILL)
                await asyncio.sleep(0.02)
            assert handle.restarts == 2
            assert isinstance(handle.error, EngineDeadError) and "death 3 within 10 minutes" in str(handle.error)

    asyncio.run(scenario())


def test_an_engine_that_falls_silent_is_replaced(monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
    set_script(monkeypatch, script)
    policy = dataclasses.replace(FAST_POLICY, hang_after=1.5, stale_after=1.0)

    async def scenario() -> None:
        async with fleet_of(policy) as fleet:
            handle = fleet.handles["fake"]
            await handle.wait_settled()
            await asyncio.sleep(2.5)
            assert handle.is_live and handle.restarts == 0  # heartbeats keep an idle engine alive
            pid = handle.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            await until(lambda: not handle.is_live)
            await until(lambda: handle.restarts == 1 and handle.is_live, 15)
            assert handle.pid != pid and await answers(handle)

    asyncio.run(scenario())


def test_a_load_that_fails_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
    set_script(monkeypatch, Script(load_fails="there are no weights"))

    async def scenario() -> None:
        async with fleet_of() as fleet:
            handle = fleet.handles["fake"]
            assert await handle.wait_settled() is ModelState.FAILED
            assert isinstance(handle.error, ModelLoadError) and str(handle.error) == "there are no weights"

    asyncio.run(scenario())


def test_a_death_while_loading_says_how_it_died(monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
    set_script(monkeypatch, Script(load_exit=9))

    async def scenario() -> None:
        async with fleet_of() as fleet:
            handle = fleet.handles["fake"]
            assert await handle.wait_settled() is ModelState.FAILED
            assert isinstance(handle.error, ModelLoadError) and "exit code 9 while loading" in str(handle.error)

    asyncio.run(scenario())


def test_a_broken_tokenizer_fails_its_model_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    set_script(monkeypatch, Script(model_dir=str(tmp_path)))

    async def scenario() -> None:
        async with fleet_of() as fleet:
            handle = fleet.handles["fake"]
            assert await handle.wait_settled() is ModelState.FAILED
            assert isinstance(handle.error, ModelLoadError)

    asyncio.run(scenario())


@pytest.mark.parametrize("moment", ["loading", "ready", "restarting", "stopped"])
def test_stopping_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, script: Script, moment: str) -> None:
    set_script(monkeypatch, script if moment != "loading" else Script(load_seconds=60))
    before = {child.pid for child in psutil.Process().children()}

    async def scenario() -> Path:
        policy = dataclasses.replace(FAST_POLICY, first_restart_delay=60.0)
        async with fleet_of(policy) as fleet:
            handle = fleet.handles["fake"]
            directory = fleet._directory
            assert directory is not None and directory.stat().st_mode & 0o777 == 0o700
            if moment != "loading":
                await handle.wait_settled()
            assert handle.pid is not None
            if moment == "restarting":
                os.kill(handle.pid, signal.SIGKILL)
                await until(lambda: handle.state is ModelState.RESTARTING)
            if moment == "stopped":
                os.kill(handle.pid, signal.SIGSTOP)
            async with asyncio.timeout(8.0):
                await fleet.stop()
            await fleet.stop()
        return directory

    assert not asyncio.run(scenario()).exists()
    assert {child.pid for child in psutil.Process().children()} == before


def test_exits_read_as_sentences() -> None:
    assert describe_exit(3) == "ended with exit code 3"
    assert describe_exit(-9).startswith("was killed by SIGKILL")
    assert describe_exit(-200) == "was killed by signal 200"
