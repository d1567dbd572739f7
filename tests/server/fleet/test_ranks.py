"""A model that ranks share, killed and stopped in every phase: nobody waits in vain, and no process is left."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator

import psutil
import pytest

from engine.config import EngineConfig
from engine.errors import EngineDeadError, ModelLoadError
from engine.pulse import SILENCE_SECONDS, SPOKEN_SECONDS
from engine.sampling_params import SamplingParams
from server.fleet.fleet import Fleet
from server.fleet.handle import EngineHandle
from server.fleet.policy import FleetPolicy, ModelState, Residence, Terms
from tests.clocks import PATIENCE
from tests.soaking import SOAK

pytestmark = pytest.mark.timeout(1800)  # each start imports torch in every rank, whatever else the machine does

RANKS = 2
STEP_TIMEOUT, HANG_AFTER = 4.0, 30.0
STALL = 5.0
TINY = (
    "random://llama?hidden_size=64&num_hidden_layers=2&vocab_size=300&intermediate_size=128&num_attention_heads=4"
    "&num_key_value_heads=2"
)
POLICY = FleetPolicy(first_restart_delay=0.01, max_restart_delay=0.01, max_crashes=1000, hang_after=HANG_AFTER)
CONFIG = EngineConfig(
    name="shared", source=TINY, dtype="float32", device="cpu", threads=1, num_blocks=64,
    tensor_parallel=RANKS, step_timeout=STEP_TIMEOUT,
)  # fmt: skip
LONG = SamplingParams(max_tokens=400, temperature=0, ignore_eos=True)


@contextlib.asynccontextmanager
async def shared(ranks: int = RANKS) -> AsyncIterator[tuple[Fleet, EngineHandle]]:
    fleet = Fleet([dataclasses.replace(CONFIG, tensor_parallel=ranks)], POLICY)
    await fleet.start()
    handle = fleet.handles["shared"]
    try:
        yield fleet, handle
    finally:
        leader = handle.pid
        await fleet.stop()
        # Other tests' processes may be children of this one too, so those of the group are asked for.
        assert leader is None or not members(leader), "a process outlived the fleet"


def members(group: int) -> list[psutil.Process]:
    """What lives in a group of processes, whosever child it is."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group and lives(process):
                found.append(process)
    return found


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ranks_of(handle: EngineHandle) -> list[psutil.Process]:
    """Rank 0 and the others, in their order."""
    assert handle.pid is not None
    leader = psutil.Process(handle.pid)
    others = [child for child in leader.children() if is_follower(child)]
    return [leader, *sorted(others, key=lambda process: process.pid)]


def is_follower(process: psutil.Process) -> bool:
    try:
        return "engine.ranks.follower" in process.cmdline()
    except psutil.Error:  # it has just ended
        return False


async def ready(handle: EngineHandle) -> None:
    async with asyncio.timeout(3 * PATIENCE):
        while handle.state is not ModelState.READY or handle.client is None:
            assert handle.state is not ModelState.FAILED, handle.error
            await asyncio.sleep(0.01)


async def answer(handle: EngineHandle, started: asyncio.Event) -> str:
    """What becomes of long requests, one behind the other so that there always is one, when the engine ends."""
    client = handle.client
    assert client is not None
    try:
        while True:
            async for outputs in client.submit([7, 8, 9], LONG):
                started.set()
                if (error := outputs[-1].error) is not None:
                    return f"error: {error}"
    except EngineDeadError as error:
        return str(error)


async def strike(handle: EngineHandle, phase: str, victim: int, number: signal.Signals) -> float:
    """Send a signal to a rank in a phase; the seconds until no process of that engine was left."""
    started = asyncio.Event()
    if phase == "load":
        os.kill(ranks_of(handle)[0].pid, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE):
            while handle.state is ModelState.READY or handle.pid is None or not handle.progress:
                await asyncio.sleep(0.01)
            while len(ranks_of(handle)) < RANKS:
                await asyncio.sleep(0.01)
        await asyncio.sleep(1.0)
    asked = asyncio.create_task(answer(handle, started)) if phase == "step" else None
    if asked is not None:
        await started.wait()
    ranks = ranks_of(handle)
    assert len(ranks) == RANKS
    assert {rank.pid for rank in ranks} <= {process.pid for process in members(ranks[0].pid)}
    restarts = handle.supervision.restarts
    began = time.monotonic()
    os.kill(ranks[victim].pid, number)
    async with asyncio.timeout(PATIENCE):
        while members(ranks[0].pid):
            await asyncio.sleep(0.01)
    gone = time.monotonic() - began
    if asked is not None:
        async with asyncio.timeout(PATIENCE):
            assert "engine of model shared" in await asked
    async with asyncio.timeout(PATIENCE):
        while handle.supervision.restarts == restarts:
            await asyncio.sleep(0.01)
    await ready(handle)
    whole = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)
    assert handle.client is not None
    outputs = [output async for batch in handle.client.submit([7], whole) for output in batch]
    assert sum(len(output.token_ids) for output in outputs) == 3
    return gone


def play(phase: str, number: signal.Signals, rounds: int, *limits: float) -> None:
    """Strike ranks in turn; for each a limit on the seconds until all are gone, in the middle of its rounds.

    A machine that is busy with other things may stand still in one of them, but no longer than `STALL`.
    """
    seconds: list[list[float]] = [[] for _ in limits]

    async def scenario() -> None:
        async with shared() as (fleet, handle):
            await ready(handle)
            for count in range(rounds):
                gone = await strike(handle, phase, count % len(limits), number)
                print(f"{phase} {number.name} {count}: {gone:.2f} s")
                seconds[count % len(limits)].append(gone)
                assert fleet._directory is not None
                (own,) = (path for path in fleet._directory.path.iterdir() if path.is_dir())
                assert sum(path.name.startswith("ranks-") for path in own.iterdir()) == 1

    asyncio.run(scenario())
    for found, limit in zip(seconds, limits, strict=True):
        assert statistics.median(found) < limit and max(found) < limit + STALL, found


def test_a_rank_that_is_killed_in_a_step_ends_all_within_a_second() -> None:
    play("step", signal.SIGKILL, 2, 1.5 + STALL, 1.5 + STALL)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("phase", ["idle", "step", "load"])
def test_ranks_are_killed_again_and_again(phase: str) -> None:
    """Ten times where there is time."""
    play(phase, signal.SIGKILL, 10 if SOAK else 4, 1.5, 1.5)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["idle", "step"])
def test_a_rank_that_is_stopped_ends_all_soon_after_its_time(phase: str) -> None:
    """Rank 0 as well, though the server takes two looks at it, and lets it print where it stands."""
    silence = max(STEP_TIMEOUT, SPOKEN_SECONDS)
    play(phase, signal.SIGSTOP, 2, silence + 5, silence + 2)


@pytest.mark.slow
def test_a_rank_that_is_stopped_while_it_loads_ends_all_as_soon() -> None:
    """Though one that only says nothing has longer; rank 0 does not know a step's time before it has loaded."""
    play("load", signal.SIGSTOP, 2, max(STEP_TIMEOUT, SPOKEN_SECONDS) + 5, SILENCE_SECONDS + 2)


@pytest.mark.slow
def test_the_log_tells_whose_death_it_was_and_nothing_of_those_who_missed_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        async with shared(ranks=4) as (_, handle):
            await ready(handle)
            started = asyncio.Event()
            asked = asyncio.create_task(answer(handle, started))
            await started.wait()
            ranks_of(handle)[2].kill()
            assert "the engine of model shared ended: rank 2 (serving) was killed by SIGKILL" in await asked

    asyncio.run(scenario())
    assert "all ranks end: rank 2 (serving) was killed by SIGKILL" in caplog.text
    assert "Traceback" not in caplog.text and "rank 1: ERROR" not in caplog.text, caplog.text


@pytest.mark.parametrize("residence", [Residence(), Residence(load="on_demand")])
def test_no_process_is_started_for_ranks_that_do_not_divide_a_model(residence: Residence) -> None:
    async def scenario() -> None:
        config = dataclasses.replace(CONFIG, tensor_parallel=3)
        policy = dataclasses.replace(POLICY, command=("/no/such/program",))
        fleet = Fleet([config], policy, terms={"shared": Terms(residence=residence)})
        await fleet.start()
        try:
            handle = fleet.handles["shared"]
            lease = fleet.lease(handle)
            async with asyncio.timeout(PATIENCE):
                assert await handle.wait_settled() is ModelState.FAILED
            lease.release()
            assert isinstance(handle.error, ModelLoadError) and handle.supervision.loads == 0
            assert str(handle.error) == "tensor_parallel: 3 does not divide the model's 4 attention heads"
            assert handle.error.hint == "these numbers of ranks divide the model: 1, 2, 4"
        finally:
            await fleet.stop()

    asyncio.run(scenario())


def test_why_a_rank_cannot_load_is_told_though_rank_0_waits_for_it() -> None:
    async def scenario() -> None:
        command = (sys.executable, "-m", "tests.server.fleet.failing_rank")
        fleet = Fleet([CONFIG], dataclasses.replace(POLICY, command=command))
        await fleet.start()
        try:
            handle = fleet.handles["shared"]
            async with asyncio.timeout(PATIENCE):
                assert await handle.wait_settled() is ModelState.FAILED
            assert isinstance(handle.error, ModelLoadError)
            assert str(handle.error) == "rank 1 (starting): its device has not enough memory"
            assert handle.error.hint == "Choose a smaller model, or more ranks."
        finally:
            await fleet.stop()

    asyncio.run(scenario())
