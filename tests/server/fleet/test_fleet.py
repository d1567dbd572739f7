"""Supervision: deaths, restarts, hangs, giving up, and leaving nothing behind."""

import asyncio
import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import psutil
import pytest

from engine.errors import EngineDeadError, ModelLoadError
from engine.lifetime import describe_exit
from engine.sampling_params import SamplingParams
from server.fleet.deaths import end_when_silent
from server.fleet.fleet import Fleet
from server.fleet.handle import EngineHandle
from server.fleet.policy import FleetPolicy, ModelState, Residence, Terms
from tests.clocks import PATIENCE
from tests.server.fakes import FAKE_COMMAND, FAST_POLICY, NEVER, Script, engine_config, set_script
from tests.server.made_up_time import run_in_made_up_time


@asynccontextmanager
async def fleet_of(
    policy: FleetPolicy = FAST_POLICY, *, on_change: Callable[[EngineHandle], None] = lambda handle: None
) -> AsyncIterator[Fleet]:
    fleet = Fleet([engine_config()], policy, on_change=on_change)
    await fleet.start()
    try:
        yield fleet
    finally:
        await fleet.stop()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
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
                assert handle.supervision.restarts == number and handle.pid != pid
                assert fleet._directory is not None
                assert sum(path.is_dir() for path in fleet._directory.path.iterdir()) == 1
            assert await answers(handle)

    asyncio.run(scenario())


def test_who_is_told_of_a_death_finds_no_engine(monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
    set_script(monkeypatch, msgspec.structs.replace(script, holds={-1: 1}))

    async def scenario() -> None:
        async with fleet_of() as fleet:
            handle = fleet.handles["fake"]
            await handle.wait_settled()
            assert handle.client is not None and handle.pid is not None
            stream = handle.client.submit([1], SamplingParams(max_tokens=3))
            with pytest.raises(EngineDeadError):
                async for outputs in stream:
                    assert outputs
                    os.kill(handle.pid, signal.SIGKILL)
            assert handle.client is None and not handle.is_live

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
            assert handle.supervision.restarts == 2
            assert isinstance(handle.error, EngineDeadError) and "death 3 within 10 minutes" in str(handle.error)

    asyncio.run(scenario())


def test_an_engine_that_falls_silent_is_replaced(monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
    """The fleet's clock is set forward; the engine's silence is real."""
    set_script(monkeypatch, script)
    policy = FleetPolicy(command=FAKE_COMMAND, stale_after=NEVER, hang_after=3 * NEVER)
    ahead = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead, time=time.time)
    for module in ("handle", "deaths"):
        monkeypatch.setattr(f"server.fleet.{module}.time", clock)

    def on_change(handle: EngineHandle) -> None:
        nonlocal ahead
        if handle.state is ModelState.RESTARTING:
            ahead = 0.0

    async def scenario() -> None:
        nonlocal ahead
        async with fleet_of(policy, on_change=on_change) as fleet:
            handle = fleet.handles["fake"]
            await handle.wait_settled()
            client, pid = handle.client, handle.pid
            assert client is not None and pid is not None
            heard = client.last_heard
            await until(lambda: client.last_heard > heard)  # heartbeats keep an idle engine alive
            assert handle.is_live and handle.supervision.restarts == 0
            os.kill(pid, signal.SIGSTOP)
            ahead = 2 * NEVER
            assert not handle.is_live and handle.state is ModelState.READY
            ahead = 4 * NEVER
            await until(lambda: handle.supervision.restarts == 1 and handle.is_live)
            assert handle.pid != pid and await answers(handle)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("is_loaded", "heard", "felt", "is_stopped", "looks"),
    [
        (True, [0.0] * 500, None, False, 122),
        (True, [60.0] * 500, None, False, 182),
        (True, [0.0] * 121 + [119.0] * 500, None, False, 241),
        (True, [500.0] * 500, 60.0, False, 72),
        (True, [0.0] * 500, 120.0, False, 122),
        (False, [0.0] * 500, 60.0, False, 182),
        (False, [0.0] * 500, 60.0, True, 72),
    ],
    ids=[
        "silent from the start", "silent after a minute", "frames that were read late", "without a pulse", "stuck",
        "without a pulse while it loads", "stopped while it loads",
    ],
)  # fmt: skip
def test_silence_is_two_looks_in_a_row_beyond_the_limit(
    monkeypatch: pytest.MonkeyPatch,
    is_loaded: bool,
    heard: list[float],
    felt: float | None,
    is_stopped: bool,
    looks: int,
) -> None:
    """`heard`: at each look, a second apart, when the engine was last heard; `felt`: when it last had a pulse."""
    ends: list[tuple[str, float]] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr("server.fleet.deaths.time", SimpleNamespace(monotonic=loop.time))

        class Process:
            name = "m"
            pulse = SimpleNamespace(felt=felt)

            @property
            def client(self) -> SimpleNamespace:
                return SimpleNamespace(last_heard=heard[round(loop.time()) - 1], info="loaded" if is_loaded else None)

            @property
            def is_stopped(self) -> bool:
                return is_stopped

            def abort(self) -> None:
                ends.append(("abort", loop.time()))

            def kill(self) -> None:
                ends.append(("kill", loop.time()))

        process: Any = Process()
        await end_when_silent(process, FleetPolicy().hang_after, 10.0)

    run_in_made_up_time(scenario())
    assert [(what, round(when)) for what, when in ends] == [("abort", looks), ("kill", looks + 1)]


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
    """Nor does it wait: for a load that does not end, for a restart that is far, for a process that does not listen."""
    set_script(monkeypatch, script if moment != "loading" else Script(holds_load=True))
    monkeypatch.setattr("server.fleet.engine_process.TERMINATE_SECONDS", 0.5)
    before = {child.pid for child in psutil.Process().children()}

    async def scenario() -> Path:
        grace = 0.5 if moment == "stopped" else NEVER
        policy = dataclasses.replace(FAST_POLICY, first_restart_delay=NEVER, max_restart_delay=NEVER, stop_grace=grace)
        async with fleet_of(policy) as fleet:
            handle = fleet.handles["fake"]
            assert fleet._directory is not None
            directory = fleet._directory.path
            assert directory.stat().st_mode & 0o777 == 0o700
            if moment != "loading":
                await handle.wait_settled()
            await until(lambda: handle.pid)
            if moment == "restarting":
                os.kill(handle.pid, signal.SIGKILL)
                await until(lambda: handle.state is ModelState.RESTARTING)
            if moment == "stopped":
                os.kill(handle.pid, signal.SIGSTOP)
            async with asyncio.timeout(PATIENCE):
                await fleet.stop()
            await fleet.stop()
        return directory

    assert not asyncio.run(scenario()).exists()
    assert {child.pid for child in psutil.Process().children()} <= before


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_a_load_that_is_called_off_while_its_process_is_made(
    monkeypatch: pytest.MonkeyPatch, script: Script, turns: int
) -> None:
    """Nobody could end that process once its memory counts as free: it would be loaded beside the books."""
    set_script(monkeypatch, script)
    before = {child.pid for child in psutil.Process().children()}

    async def scenario() -> None:
        fleet = Fleet([engine_config()], FAST_POLICY, terms={"fake": Terms(residence=Residence(load="on_demand"))})
        await fleet.start()
        try:
            handle, residency = fleet.handles["fake"], fleet.residency
            lease = fleet.lease(handle)
            while residency.grants.of("fake") is None:
                await asyncio.sleep(0)
            for _ in range(turns):
                await asyncio.sleep(0)
            assert handle.pid is None, "the process is there already"
            lease.release()
            residency.end(handle)
            await fleet.wait_unloaded(handle)
            await until(lambda: residency.grants.of("fake") is None)
            assert handle.pid is None and {child.pid for child in psutil.Process().children()} <= before
            fleet.lease(handle)
            assert await handle.wait_settled() is ModelState.READY and await answers(handle)
            await until(lambda: residency.grants.of("fake"))
        finally:
            await fleet.stop()

    asyncio.run(scenario())


def test_exits_read_as_sentences() -> None:
    assert describe_exit(3) == "ended with exit code 3"
    assert describe_exit(-9).startswith("was killed by SIGKILL")
    assert describe_exit(-200) == "was killed by signal 200"
