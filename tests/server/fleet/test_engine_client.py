"""The client against the scripted engine, over the real socket and a real process."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.client import EngineClient
from engine.errors import EngineDeadError, ModelLoadError
from engine.messages import SequenceOutput
from engine.sampling_params import SamplingParams
from server.fleet import engine_process
from server.fleet.engine_process import EngineProcess
from server.fleet.policy import FleetPolicy
from server.fleet.pulse import PulseReader
from tests.clocks import PATIENCE
from tests.server.fakes import FAKE_COMMAND, Script, engine_config, logged_events, set_script
from tests.server.made_up_time import run_in_made_up_time


@asynccontextmanager
async def running(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> AsyncIterator[EngineProcess]:
    set_script(monkeypatch, script)
    process = await EngineProcess.spawn(engine_config(), tmp_path, FAKE_COMMAND)
    try:
        yield process
    finally:
        await process.stop(2.0)


async def collect(client: EngineClient, params: SamplingParams, n: int = 1, prompt: int = 4) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = {index: [] for index in range(n)}
    async for outputs in client.submit([1] * prompt, params, n=n):
        for output in outputs:
            tokens[output.index] += output.token_ids
    return tokens


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


def test_tokens_arrive_whole_and_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(monkeypatch, tmp_path, Script(token_ids=[5, 6, 7])) as process:
            await process.client.wait_ready()
            results = await asyncio.gather(
                *(collect(process.client, SamplingParams(max_tokens=count)) for count in range(1, 40))
            )
            for count, result in enumerate(results, 1):
                assert result[0] == ([5, 6, 7] * 40)[:count]
            assert process.client.num_requests == 0

    asyncio.run(scenario())


def test_choices_travel_as_one_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def scenario() -> None:
        async with running(monkeypatch, tmp_path, Script(token_ids=list(range(11)), log=str(log))) as process:
            await process.client.wait_ready()
            assert await collect(process.client, SamplingParams(max_tokens=2, seed=4), n=3) == {
                0: [4, 5],
                1: [5, 6],
                2: [6, 7],
            }
            assert [(add["n"], add["seed"]) for add in logged_events(log, "add")] == [(3, 4)]
            assert process.client.num_requests == 0

    asyncio.run(scenario())


def test_one_choice_can_be_aborted_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log, gate = tmp_path / "log", tmp_path / "gate"
    script = Script(token_ids=[5], holds={-1: 3}, gate=str(gate), log=str(log))

    async def scenario() -> None:
        async with running(monkeypatch, tmp_path, script) as process:
            await process.client.wait_ready()
            stream = process.client.submit([1], SamplingParams(max_tokens=30), n=2)
            seen: list[SequenceOutput] = []
            async for outputs in stream:
                seen += outputs
                if len(seen) == 6:
                    stream.abort(1)
                    await until(lambda: logged_events(log, "abort"))
                    gate.touch()
            first = [output for output in seen if output.index == 0]
            assert len(first) == 30 and first[-1].finish_reason == "length"
            assert not any(output.finish_reason for output in seen if output.index == 1)
            assert len(seen) == 33 and process.client.stats.generation_tokens == 33
            assert [entry["index"] for entry in logged_events(log, "abort")] == [1]

    asyncio.run(scenario())


def test_abort_ends_the_iterator_and_is_idempotent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def scenario() -> None:
        async with running(monkeypatch, tmp_path, Script(token_ids=[5], step_seconds=0.01, log=str(log))) as process:
            await process.client.wait_ready()
            stream = process.client.submit([1] * 100, SamplingParams(max_tokens=10**9), n=4)
            async for _ in stream:
                stream.abort()
                stream.abort()
            assert process.client.num_requests == 0
            await until(lambda: process.client.stats.aborted == 4)
            assert process.client.stats.num_running == 0
            assert len(logged_events(log, "abort")) == 1

    asyncio.run(scenario())


def test_poke_yields_an_empty_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async def scenario() -> None:
        async with running(monkeypatch, tmp_path, Script(token_ids=[5], holds={-1: 0}, gate=str(gate))) as process:
            await process.client.wait_ready()
            stream = process.client.submit([1], SamplingParams(max_tokens=1))
            asyncio.get_running_loop().call_later(0.05, stream.poke)
            lengths = []
            async for outputs in stream:
                lengths.append(len(outputs))
                gate.touch()
            assert lengths == [0, 1]

    asyncio.run(scenario())


def test_a_killed_engine_fails_its_streams_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The end of the process tells, and no timer: there is none on this side that could."""

    async def scenario() -> None:
        async with running(monkeypatch, tmp_path, Script(token_ids=[5], step_seconds=0.01)) as process:
            await process.client.wait_ready()
            stream = process.client.submit([1], SamplingParams(max_tokens=100_000))
            with pytest.raises(EngineDeadError, match="SIGKILL"):
                async with asyncio.timeout(PATIENCE):
                    async for _ in stream:
                        process.kill()
            with pytest.raises(EngineDeadError):
                process.client.submit([1], SamplingParams(max_tokens=1))

    asyncio.run(scenario())


def test_a_failed_load_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine_process, "FINAL_FRAMES_SECONDS", 1.0)

    async def scenario() -> None:
        async with running(monkeypatch, tmp_path, Script(load_fails="no such weights", ends_itself=True)) as process:
            with pytest.raises(ModelLoadError, match="no such weights") as caught:
                await process.client.wait_ready()
            assert caught.value.hint == "try something else"

    asyncio.run(scenario())


def test_an_engine_that_ends_while_loading_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(monkeypatch, tmp_path, Script(load_exit=7)) as process:
            with pytest.raises(EngineDeadError, match="exit code 7"):
                async with asyncio.timeout(PATIENCE):
                    await process.client.wait_ready()

    asyncio.run(scenario())


def test_what_the_engine_prints_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(monkeypatch, tmp_path, Script(token_ids=[5])) as process:
            await process.client.wait_ready()
            await until(lambda: process.last_words)
            assert list(process.last_words) == ["fake engine speaking"]

    asyncio.run(scenario())


def test_a_process_that_does_not_end_is_ended_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, float]] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        end: asyncio.Future[int] = loop.create_future()

        async def no_output(size: int) -> bytes:
            return b""

        async def close() -> None:
            pass

        def signal_group(pid: int, number: signal.Signals) -> None:
            sent.append((number, loop.time()))
            if number is signal.SIGKILL:
                end.set_result(-number)

        monkeypatch.setattr(os, "killpg", signal_group)
        child: Any = SimpleNamespace(pid=1, wait=lambda: end, stdout=SimpleNamespace(read=no_output))
        ignore = lambda *given: None  # noqa: E731
        client: Any = SimpleNamespace(info="loaded", shutdown=ignore, mark_dead=ignore, close=close)
        await EngineProcess("fake", child, client, PulseReader()).stop(FleetPolicy().stop_grace)

    run_in_made_up_time(scenario())
    asked = FleetPolicy().stop_grace
    assert sent == [(signal.SIGTERM, asked), (signal.SIGKILL, asked + engine_process.TERMINATE_SECONDS)]
